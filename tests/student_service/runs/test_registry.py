"""How many runs there are, and what is left of those that were."""

import threading

import pytest

from distill.errors import LimitExceededError, NotFoundError, WriterFencedError
from distill.network.adapters import LoraSpec
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.kept_answers import Ticket
from student_service.runs.registry import RunRegistry
from student_service.runs.waiting_room import WaitingRoom

LORA = LoraSpec(rank=1, alpha=1.0, target_modules=("q_proj",), seed=0)


@pytest.fixture
def registry(in_process, tmp_path):
    return RunRegistry(
        in_process.model,
        trainer=in_process.trainer,
        queue=in_process.queue,
        store=CheckpointStore(tmp_path),
        waiting_room=WaitingRoom(places=8),
        first_epoch=1,
        max_runs=2,
        kept_deletions=2,
    )


def create(registry, name):
    return registry.create(name, LORA, lambda: 20.0)[0]


def deletion(run, number=1):
    return Ticket(
        writer_epoch=run.sequencer.committed.writer_epoch, sequence_number=number, digest=b"delete"
    )


def test_a_run_too_many_is_refused_until_another_is_deleted(registry):
    first, second = create(registry, "first"), create(registry, "second")
    with pytest.raises(LimitExceededError, match="runs of the service: must be at most 2, got 3"):
        create(registry, "third")
    with pytest.raises(NotFoundError):
        registry.get("third")
    assert create(registry, "second") is second  # no new one
    registry.remove(first, deletion(first))
    assert create(registry, "third").run_id == "third"


def test_deletions_are_forgotten_in_the_end_and_their_writers_stay_fenced(registry):
    epochs = {}
    for index in range(6):
        run = create(registry, f"run-{index}")
        epochs[run.run_id] = run.sequencer.committed.writer_epoch
        registry.remove(run, deletion(run))
    known = [name for name in epochs if registry.deleted_by(name) is not None]
    assert known == ["run-4", "run-5"]
    for name in ("run-0", "run-5"):
        again = create(registry, name)
        assert again.sequencer.committed.writer_epoch > epochs[name]
        earlier = Ticket(writer_epoch=epochs[name], sequence_number=1, digest=b"late")
        with pytest.raises(WriterFencedError, match="another writer"):
            again.sequencer.execute(earlier, lambda state: (state, "applied"), timeout_seconds=1)


def test_a_new_run_is_made_on_the_device_as_a_whole(registry, in_process, monkeypatch):
    threads = []
    genuine = in_process.trainer.initial_optimizer_state

    def noting(trainable):
        threads.append(threading.current_thread().name)
        return genuine(trainable)

    monkeypatch.setattr(in_process.trainer, "initial_optimizer_state", noting)
    create(registry, "first")
    assert threads == ["device-queue"]


def test_a_run_that_is_made_again_names_none_of_its_weights_as_the_run_before(registry):
    first = create(registry, "same")
    registry.remove(first, deletion(first))
    second = create(registry, "same")
    assert second.state.weights_version != first.state.weights_version
