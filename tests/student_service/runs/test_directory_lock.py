"""A directory of runs has one student."""

import signal
import subprocess
import sys

import pytest

from distill.rpc.server import StartError
from student_service.runs.directory_lock import LOCK_FILE, held_directory
from student_service.runs.incarnation import FILE_NAME
from tests.student_service.runs.test_incarnation import start  # noqa: F401 - a fixture
from tests.support.waiting import wait_until

HOLD = """
import sys, time
from pathlib import Path
from student_service.runs.directory_lock import held_directory
with held_directory(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "runs")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_student_is_refused_before_it_writes_and_told_what_to_do(
    other_process,  # noqa: ARG001
    start,  # noqa: F811
    tmp_path,
):
    with pytest.raises(StartError, match="another student keeps its runs there; stop it") as caught:
        start()
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [LOCK_FILE]


def free(directory):
    try:
        with held_directory(directory):
            return True
    except BlockingIOError:
        return False


def test_a_killed_process_holds_its_directory_no_longer(other_process, tmp_path):
    assert not free(tmp_path / "runs")
    other_process.send_signal(signal.SIGKILL)
    wait_until(lambda: free(tmp_path / "runs"))


def test_a_start_that_fails_frees_the_directory_and_a_service_holds_it_beyond_its_stop(
    start,  # noqa: F811
    tmp_path,
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / FILE_NAME).write_text("many")
    with pytest.raises(StartError):
        start()
    (tmp_path / "runs" / FILE_NAME).unlink()
    server = start()
    assert not free(tmp_path / "runs")
    server.stop(1)
    assert not free(tmp_path / "runs")
