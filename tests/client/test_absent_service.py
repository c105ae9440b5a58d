"""Services that are frozen, restarted or not there, as processes: seen in time, and waited for."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from client.connection import wait_until_serving
from client.errors import ServiceError
from client.results import ModelInfo
from client.retry import RetryPolicy
from client.teacher import TeacherClient
from tests.client.fake_server import serving
from tests.client.fake_teacher import FakeTeacher
from tests.client.teacher_process import teacher_process
from tests.support.waiting import wait_until

SEEN_SECONDS = 15.0
"""Promised: a dead or frozen peer is seen within it."""


@contextlib.contextmanager
def asking(client: TeacherClient, timeout_seconds: float = 120) -> Iterator[Future[ModelInfo]]:
    """A call in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(client.model_info, timeout_seconds=timeout_seconds)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def test_a_service_that_starts_late_is_waited_for() -> None:
    port = free_port()
    with TeacherClient(f"127.0.0.1:{port}", timeout_seconds=60) as client, asking(client) as answer:
        time.sleep(0.5)
        assert not answer.done()
        with teacher_process(port=port):
            assert answer.result().name == "fake"


@pytest.mark.slow
def test_a_restart_that_takes_longer_than_a_few_seconds_is_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with teacher_process() as (address, process), TeacherClient(address) as client:
        client.model_info()
        process.kill()
        process.wait()
        with asking(client) as answer:
            time.sleep(8)
            assert not answer.done()
            with teacher_process(port=int(address.rpartition(":")[2])):
                assert answer.result().name == "fake"
    waiting, over = caplog.messages
    assert waiting.startswith(f"the teacher at {address} cannot answer now: UNAVAILABLE: ")
    assert f"nothing listens at {address}; distill-teacher starts a teacher; trying" in waiting
    assert over == f"the teacher at {address} answers now"


@pytest.mark.slow
@pytest.mark.parametrize(
    "silence",
    [0, 1, 45],
    ids=["before the first call", "early in a call", "late in a call that is silent"],
)
def test_a_frozen_service_is_seen_within_15_s_and_answers_when_it_goes_on(
    silence: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        teacher_process(silent_seconds=silence + 2 if silence else 0) as (address, process),
        TeacherClient(address, timeout_seconds=200) as client,
    ):
        if not silence:
            process.send_signal(signal.SIGSTOP)
        with asking(client, timeout_seconds=200) as answer:
            time.sleep(silence)
            assert not answer.done()
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: caplog.messages != [], SEEN_SECONDS)
            time.sleep(7)  # so that attempts to connect fail as well
            process.send_signal(signal.SIGCONT)
            assert answer.result().name == "fake"
    waiting, over = caplog.messages
    assert waiting.startswith(f"the teacher at {address} cannot answer now: UNAVAILABLE: ")
    assert f"{address} takes connections and says nothing: is its process stopped?" in waiting
    assert over == f"the teacher at {address} answers now"


@pytest.mark.slow
def test_a_deadline_in_front_of_a_frozen_service_raises_unavailable() -> None:
    with (
        teacher_process() as (address, process),
        TeacherClient(address) as client,
    ):
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ServiceError, match=r"is its process stopped\?; tried \d+ times") as end:
            client.model_info(timeout_seconds=8)
        assert end.value.code == "UNAVAILABLE"
        assert end.value.attempts > 1


def test_an_address_that_takes_connections_and_says_nothing_fails_in_seconds() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        TeacherClient(
            f"127.0.0.1:{silent.getsockname()[1]}",
            timeout_seconds=60,
            retry=RetryPolicy(attempts=1),
        ) as client,
    ):
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"says nothing: is its process stopped\?$") as end:
            client.model_info()
        assert end.value.code == "UNAVAILABLE"
        assert time.monotonic() - started < 10


def test_whoever_waits_for_a_service_to_serve_reads_why(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    name = "distill.v1.TeacherService"
    with pytest.raises(ServiceError, match="did not become ready"):
        wait_until_serving(f"127.0.0.1:{port}", service=name, timeout_seconds=4)
    (warning,) = caplog.messages
    assert warning.startswith(f"{name} at 127.0.0.1:{port} cannot answer now: UNAVAILABLE: ")
    assert warning.endswith("; trying again for up to 1 s")


def test_a_command_says_whom_it_waits_for_and_ctrl_c_ends_it() -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "client.cli", "runs", "--student-address", address]
    with subprocess.Popen(
        [*command, "--wait-seconds", "100"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        waiting = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=20)
    assert waiting.startswith(f"the student at {address} cannot answer now: UNAVAILABLE: ")
    assert "distill-student starts a student; trying again for up to 9" in waiting
    assert (process.returncode, rest) == (130, "distill: interrupted\n")


def test_a_command_gives_up_soon_where_nobody_ever_answered() -> None:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "client.cli", "info", "--teacher-address", address]
    done = subprocess.run(
        [*command, "--timeout-seconds", "300", "--wait-seconds", "1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("distill: error: UNAVAILABLE: ")
    assert "nothing listens at" in done.stderr


class EndedError(Exception):
    """The service that this program started has ended."""


def test_before_each_further_attempt_the_policy_may_say_that_there_is_no_sense_in_it() -> None:
    asked = []

    def check() -> None:
        asked.append(True)
        if len(asked) == 2:
            raise EndedError

    retry = RetryPolicy(first_delay_seconds=0.01, before_retry=check)
    with (
        TeacherClient(f"127.0.0.1:{free_port()}", timeout_seconds=60, retry=retry) as client,
        pytest.raises(EndedError),
    ):
        client.model_info()
    assert len(asked) == 2


def test_the_check_before_a_retry_is_not_asked_when_the_first_attempt_succeeds() -> None:
    def check() -> None:
        raise EndedError

    with (
        serving(FakeTeacher()) as address,
        TeacherClient(address, retry=RetryPolicy(before_retry=check)) as client,
    ):
        assert client.model_info().name == "fake"
