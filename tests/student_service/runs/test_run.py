"""What reads of a run share."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from client.settings import AdamW, LoraConfig, batch_settings, token_example
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.scoring_scheduler import ScoringScheduler
from student_service.runs.caller import Caller
from student_service.training.batch import BatchOutcome
from student_service.training.optimizer import StepOutcome
from student_service.training.trainer import GradientOutcome

HARD = batch_settings("cross_entropy")
EXAMPLE = token_example(np.arange(3, 12), target_offset=0, token_ids=np.arange(4, 13))
CALLER = Caller(
    remaining_seconds=lambda: 60.0, is_active=lambda: True, on_end=lambda _callback: True
)
READERS = 8


@pytest.fixture
def handle(student):
    return student.create_run(f"run-{uuid.uuid4().hex[:8]}", lora=LoraConfig(rank=2))


@pytest.fixture
def run(in_process, handle):
    return in_process.runs.get(handle.run_id)


def read_side_by_side(in_process, read):
    """What all readers get who wait for the device at the same time."""
    with ThreadPoolExecutor(READERS) as executor:
        with in_process.device_held():
            reads = [executor.submit(read) for _ in range(READERS)]
        return [one.result(60) for one in reads]


def test_streams_under_the_weights_of_a_run_share_calls_of_the_model(in_process, run):
    scheduler = ScoringScheduler(in_process.queue, Scorer(in_process.model), token_budget=1024)
    weights = read_side_by_side(in_process, lambda: run.current_weights(CALLER))
    job = ScoreJob(
        prompt_index=0,
        token_ids=np.arange(9, dtype=np.int32),
        score_from=1,
        top_k=2,
        temperature=1.0,
    )
    with in_process.device_held():
        streams = [scheduler.score([job], each) for each in weights]
    assert [sum(len(chunk.token_ids) for chunk in stream) for stream in streams] == [8] * READERS
    assert scheduler.call_count == 1


@pytest.fixture
def instant_training(in_process, monkeypatch):
    """A gradient that costs nothing, and a step that adds 1 to every parameter."""

    def forward_backward(trainable, *_):
        outcome = BatchOutcome(loss=0.0, row_count=1, token_count=1, metrics={}, examples=())
        yield GradientOutcome(gradients=trainable, batch=outcome)

    def optim_step(trainable, optimizer_state, *_):
        stepped = jax.tree.map(lambda leaf: leaf + 1, trainable)
        return StepOutcome(stepped, optimizer_state, {"gradient_norm": 1, "update_norm": 1})

    monkeypatch.setattr(in_process.trainer, "forward_backward", forward_backward)
    monkeypatch.setattr(in_process.trainer, "optim_step", optim_step)


@pytest.mark.usefixtures("instant_training")
def test_the_weights_of_a_run_are_made_once_until_they_change(run, handle):
    handle.save_checkpoint("before")
    first = run.current_weights(CALLER)
    handle.forward_backward([EXAMPLE], HARD)
    assert run.current_weights(CALLER) is first
    handle.optim_step(AdamW(learning_rate=1e-2))
    stepped = run.current_weights(CALLER)
    assert (np.asarray(stepped.adapter["q_proj"]["b"]) != 0).any()
    assert run.current_weights(CALLER) is stepped
    handle.load_checkpoint("before")
    restored = run.current_weights(CALLER)
    assert not np.asarray(restored.adapter["q_proj"]["b"]).any()


def test_readers_who_restore_a_checkpoint_side_by_side_get_the_same_arrays(in_process, run, handle):
    handle.save_checkpoint("saved")
    weights = read_side_by_side(in_process, lambda: run.checkpoint_weights("saved", CALLER))
    assert len({id(each) for each in weights}) == 1
