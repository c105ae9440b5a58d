"""A restart forgets the runs, and their writers stay fenced."""

import itertools
import os

import pytest

from client.errors import ServiceError
from client.settings import LoraConfig
from client.student import StudentClient
from distill.engine import process
from distill.rpc.options import ServerOptions
from distill.rpc.server import RunningServer, StartError
from student_service import __main__ as student_process
from student_service.__main__ import load_service
from student_service.runs.incarnation import FILE_NAME, first_epoch


@pytest.fixture
def start(in_process, tmp_path, monkeypatch):
    """Starts the service as its process does, but with the model that is loaded already."""
    monkeypatch.setattr(process, "load_model", lambda *_, **__: in_process.model)
    for function in ("keep_freed_memory", "enable_compilation_cache", "use_full_precision"):
        monkeypatch.setattr(process, function, lambda *_: None)

    def start_service(port: int = 0) -> RunningServer:
        options = ServerOptions(
            model="the tiny model",
            host="127.0.0.1",
            port=port,
            ready_file=None,
            exit_when_stdin_closes=False,
            dtype="float32",
            mask_padded_vocabulary=True,
            max_top_k=None,
            max_sequence_tokens=None,
            cache_dir=None,
            max_concurrent_requests=8,
            grace_seconds=1,
        )
        service = load_service(
            options,
            teachers={},
            runs_dir=tmp_path / "runs",
            max_runs=1,
            micro_batch_tokens=64,
            remat=False,
        )
        server = RunningServer(host="127.0.0.1", port=port)
        server.start(service)
        return server

    yield start_service
    end_process()


def end_process():
    """Free what a process holds until it ends."""
    while student_process._HELD:
        student_process._HELD.pop().close()


def test_the_writer_of_a_run_that_a_restart_forgot_is_fenced_from_a_new_one_of_its_name(start):
    server = start()
    with StudentClient(server.address, timeout_seconds=60) as student:
        earlier = student.create_run("run", lora=LoraConfig(rank=1))
        earlier.save_checkpoint("first")
        server.stop(1)
        end_process()
        server = start(int(server.address.rpartition(":")[2]))
        try:
            later = student.create_run("run", lora=LoraConfig(rank=1))
            later.save_checkpoint("second")
            before = later.state()
            with pytest.raises(ServiceError, match=r"ABORTED.*another writer"):
                earlier.save_checkpoint("third")
            assert later.state() == before
            later.save_checkpoint("third")
        finally:
            server.stop(1)


def test_epochs_of_a_process_are_above_all_that_earlier_ones_could_give(tmp_path):
    firsts = [first_epoch(tmp_path / "runs") for _ in range(4)]
    assert firsts[0] == 1
    assert all(later - earlier >= 1 << 32 for earlier, later in itertools.pairwise(firsts))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [FILE_NAME]


def test_a_directory_that_holds_no_count_is_refused_at_the_start(start, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / FILE_NAME).write_text("many")
    with pytest.raises(StartError, match="cannot use --runs-dir"):
        start()


def test_a_link_or_a_pipe_in_the_place_of_the_count_is_refused_at_the_start(start, tmp_path):
    path = tmp_path / "runs" / FILE_NAME
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="not a regular file"):
        start()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StartError, match="not a regular file"):
        start()
    assert not (tmp_path / "elsewhere").exists()
