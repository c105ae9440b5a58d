"""What callers may rely on when the device is busy or their deadline passes."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from client.errors import ServiceError, UncertainMutationError
from client.settings import AdamW, LoraConfig, batch_settings, token_example

LORA = LoraConfig(rank=2)
STEP = AdamW(learning_rate=1e-2)
HARD = batch_settings("cross_entropy")
EXAMPLE = token_example(np.arange(3, 12), target_offset=0, token_ids=np.arange(4, 13))


@pytest.fixture
def run(student):
    """A run with a gradient, one mutation old."""
    run = student.create_run(f"run-{uuid.uuid4().hex[:8]}", lora=LORA)
    run.forward_backward([EXAMPLE], HARD)
    return run


MUTATIONS = {
    "forward_backward": lambda run, **options: run.forward_backward([EXAMPLE], HARD, **options),
    "optim_step": lambda run, **options: run.optim_step(STEP, **options),
    "save_checkpoint": lambda run, **options: run.save_checkpoint("late", **options),
    "load_checkpoint": lambda run, **options: run.load_checkpoint("early", **options),
}


@pytest.mark.parametrize("operation", sorted(MUTATIONS))
def test_mutation_whose_deadline_passes_before_the_device_is_free_never_happens(
    in_process, run, operation
):
    run.save_checkpoint("early")
    before = run.state()
    mutate = MUTATIONS[operation]
    with in_process.device_held():
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            mutate(run, timeout_seconds=0.3)
        with pytest.raises(UncertainMutationError):
            mutate(run)
        assert run.resynchronize(timeout_seconds=20) == 0
    assert run.state().last_sequence_number == before.last_sequence_number
    assert run.state().step == before.step
    assert [one.name for one in run.list_checkpoints()] == ["early"]
    mutate(run)
    assert run.state().last_sequence_number == before.last_sequence_number + 1


def test_resynchronizing_waits_for_a_mutation_that_has_begun(in_process, run, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    genuine = in_process.trainer.optim_step

    def slow(*args):
        begun.set()
        release.wait(20)
        return genuine(*args)

    with monkeypatch.context() as patch:
        patch.setattr(in_process.trainer, "optim_step", slow)
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            run.optim_step(STEP, timeout_seconds=0.3)
        assert begun.wait(5)
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            run.resynchronize(timeout_seconds=0.3)
        with ThreadPoolExecutor(1) as executor:
            applied = executor.submit(run.resynchronize, timeout_seconds=20)
            release.set()
            assert applied.result(20) == 1
    assert run.state().step == 1
    run.forward_backward([EXAMPLE], HARD)
    assert run.optim_step(STEP).step == 2


def test_creating_a_run_keeps_nobody_from_the_others(in_process, student, run):
    name = f"new-{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(2) as executor:
        with in_process.device_held():
            first, second = (executor.submit(student.create_run, name, lora=LORA) for _ in "ab")
            with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
                student.create_run(f"{name}-late", lora=LORA, timeout_seconds=0.3)
            assert run.state(timeout_seconds=5).last_sequence_number == 1
            assert name not in [one.run_id for one in student.list_runs(timeout_seconds=5)]
            assert not first.done()
        assert first.result(20).created == second.result(20).created
    assert f"{name}-late" not in [one.run_id for one in student.list_runs()]
