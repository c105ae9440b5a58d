"""What a client sees of a disk that fails: a refusal with its reason, and a run that goes on."""

import errno
import os
import uuid

import pytest

from client.errors import ServiceError
from client.settings import LoraConfig

LORA = LoraConfig(rank=2)


@pytest.fixture
def run(student):
    return student.create_run(f"run-{uuid.uuid4().hex[:8]}", lora=LORA)


def failing(code):
    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code), "/secret/path")

    return fail


@pytest.mark.parametrize(
    ("code", "status"),
    [(errno.ENOSPC, "RESOURCE_EXHAUSTED"), (errno.EROFS, "FAILED_PRECONDITION")],
)
def test_a_save_that_the_disk_refuses_is_told_and_can_be_repeated(
    in_process, run, monkeypatch, code, status
):
    before = run.state()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(code))
        with pytest.raises(ServiceError, match=f"{status}.*{os.strerror(code)}") as caught:
            run.save_checkpoint("kept")
    assert "secret" not in str(caught.value)
    assert run.state() == before
    assert not (in_process.runs_dir / run.run_id).exists()
    assert run.save_checkpoint("kept").name == "kept"
    assert run.load_checkpoint("kept").step == 0


def test_a_deletion_that_the_disk_refuses_keeps_the_run_and_can_be_repeated(
    in_process, student, run, monkeypatch
):
    run.save_checkpoint("kept")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(ServiceError, match=r"FAILED_PRECONDITION.*cannot delete"):
            run.delete(delete_checkpoints=True)
    assert run.run_id in [one.run_id for one in student.list_runs()]
    assert [one.name for one in run.list_checkpoints()] == ["kept"]
    run.delete(delete_checkpoints=True)
    assert [path.name for path in in_process.runs_dir.iterdir() if run.run_id in path.name] == []
