"""Requests of one writer that are on their way together, sent by the client."""

import uuid

import numpy as np
import pytest

from client.errors import PredecessorFailedError, ServiceError
from client.run import StudentRun
from client.settings import AdamW, LoraConfig, batch_settings, token_example
from client.student import StudentClient

STEP = AdamW(learning_rate=1e-2)
HARD = batch_settings("cross_entropy")
EXAMPLES = [
    token_example(np.arange(3, 12), target_offset=0, token_ids=np.arange(start, start + 9))
    for start in (4, 20, 30)
]
TOO_LARGE = token_example([3, 4], target_offset=0, token_ids=[4, 5], weights=[3e38, 3e38])
"""Its gradient is not finite."""


def attach(student: StudentClient) -> StudentRun:
    return student.create_run(f"pipelined-{uuid.uuid4().hex[:8]}", lora=LoraConfig(rank=2))


def test_steps_sent_together_are_those_sent_one_by_one(student: StudentClient) -> None:
    together, one_by_one = attach(student), attach(student)
    submitted = []
    for example in EXAMPLES:
        together.submit_forward_backward([example], HARD)
        submitted.append(together.submit_optim_step(STEP))
    for example, future in zip(EXAMPLES, submitted, strict=True):
        one_by_one.forward_backward([example], HARD)
        expected, got = one_by_one.optim_step(STEP), future.result()
        assert (got.step, got.gradient_norm, got.update_norm, got.normalizer) == (
            expected.step,
            expected.gradient_norm,
            expected.update_norm,
            expected.normalizer,
        )


def test_a_step_behind_a_refused_batch_is_not_taken_and_training_goes_on(
    student: StudentClient,
) -> None:
    run = attach(student)
    first = run.submit_forward_backward([EXAMPLES[0]], HARD)
    refused = run.submit_forward_backward([TOO_LARGE], HARD)
    step = run.submit_optim_step(STEP)
    assert first.result().totals.row_count == 9
    with pytest.raises(ServiceError) as caught:
        refused.result()
    assert caught.value.reason == "NON_FINITE_GRADIENT"
    with pytest.raises(PredecessorFailedError):
        step.result()
    assert (run.state().last_sequence_number, run.state().step) == (1, 0)
    assert run.optim_step(STEP).normalizer == 9
    assert run.state().last_sequence_number == 2
