"""A connection says what is wrong with its address, and ends when it is told to."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from client.connection import Connection, Role, wait_until_serving
from client.errors import ServiceError
from client.retry import RetryPolicy
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.errors import UnavailableError
from distill.limits import MAX_MESSAGE_BYTES
from tests.client.fake_server import serving
from tests.client.fake_teacher import FakeTeacher

ONCE = RetryPolicy(attempts=1)

INTERRUPTED = """
import grpc
from client import connection

connection.CLOSE_SECONDS = 0.2
opened = connection.Connection("127.0.0.1:1", connection.Role.TEACHER, timeout_seconds=5)

def interrupt(_state):
    raise KeyboardInterrupt

grpc._channel._run_channel_spin_thread = interrupt
try:
    opened.channel.unary_stream("/test.Echo/Answer")(b"", timeout=5)
except KeyboardInterrupt:
    opened.close()
    print("closed")
"""
"""Ctrl-C between the birth of a call and the start of the thread that ends it: gRPC's own `close`
then waits for ever."""


def test_ctrl_c_inside_grpc_keeps_neither_the_close_nor_the_process_waiting() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")


def test_an_address_that_grpc_would_read_otherwise_is_refused() -> None:
    problem = "must be HOST:PORT with a port up to 65535, got 'localhost'"
    with pytest.raises(ValueError, match=f"address: {problem}"):
        TeacherClient("localhost")
    with pytest.raises(ValueError, match=problem):
        wait_until_serving("localhost", service="any", timeout_seconds=1)


def test_a_target_of_grpc_reaches_the_service() -> None:
    with serving(FakeTeacher()) as address, TeacherClient(f"dns:///{address}") as client:
        assert client.model_info().name == "fake"


def test_a_service_that_does_not_run_comes_with_the_command_that_starts_it() -> None:
    with (
        StudentClient("127.0.0.1:1", retry=ONCE) as student,
        pytest.raises(
            ServiceError, match=r"; nothing listens at 127\.0\.0\.1:1; distill-student"
        ) as caught,
    ):
        student.model_info()
    assert caught.value.code == "UNAVAILABLE"
    assert "distill-student" not in caught.value.message


def test_a_service_that_says_why_it_is_unavailable_is_not_told_to_be_absent() -> None:
    teacher = FakeTeacher()
    teacher.error = UnavailableError("the service is draining")
    with (
        serving(teacher) as address,
        TeacherClient(address, retry=ONCE) as client,
        pytest.raises(ServiceError) as caught,
    ):
        client.model_info()
    assert (caught.value.hint, caught.value.message) == ("", "the service is draining")


GONE = "UNAVAILABLE: Socket closed"
REFUSED = "UNAVAILABLE: Connection refused"
BAD_FIELD = "INVALID_ARGUMENT: top_k: must be at most 5, got 9"
NOBODY = "nothing listens at 127.0.0.1:1; distill-teacher starts a teacher"
BROKEN = f"an earlier attempt ended with {GONE}"


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        ([REFUSED], f"{REFUSED}; {NOBODY}"),
        ([REFUSED, REFUSED], f"{REFUSED}; {NOBODY}; tried 2 times in 0.0 s"),
        ([GONE, GONE], f"{GONE}; tried 2 times in 0.0 s"),
        ([GONE, REFUSED], f"{REFUSED}; {NOBODY}; {BROKEN}; tried 2 times in 0.0 s"),
        ([REFUSED, GONE, REFUSED], f"{REFUSED}; {NOBODY}; {BROKEN}; tried 3 times in 0.0 s"),
        ([GONE, BAD_FIELD], BAD_FIELD),
    ],
)
def test_a_call_that_fails_says_what_broke_it_but_not_what_a_retry_survived(
    problems: list[str], told: str
) -> None:
    left = list(problems)

    def attempt(_timeout_seconds: float) -> None:
        code, _, message = left.pop(0).partition(": ")
        raise ServiceError(code=code, message=message)

    retry = RetryPolicy(attempts=len(problems), first_delay_seconds=0.001)
    connection = Connection("127.0.0.1:1", Role.TEACHER, timeout_seconds=5, retry=retry)
    with pytest.raises(ServiceError) as caught:
        connection.call(attempt, connection.deadline(None))
    assert str(caught.value) == told
    assert caught.value.attempts == len(problems)
    assert left == []
    connection.close()


def test_a_service_that_answered_once_is_waited_for_longer_than_one_that_never_did() -> None:
    retry = RetryPolicy(unanswered_seconds=0.05, first_delay_seconds=0.02)
    connection = Connection("127.0.0.1:1", Role.TEACHER, timeout_seconds=30, retry=retry)

    def failing(count: int) -> Callable[[float], str]:
        left = [ServiceError(code="UNAVAILABLE", message="Connection refused")] * count

        def attempt(_timeout_seconds: float) -> str:
            if left:
                raise left.pop()
            return "answer"

        return attempt

    with pytest.raises(ServiceError, match="nothing listens"):
        connection.call(failing(5), connection.deadline(None))
    assert connection.call(failing(0), connection.deadline(None)) == "answer"
    assert connection.call(failing(5), connection.deadline(None)) == "answer"
    connection.close()


@pytest.mark.parametrize(
    ("size", "refused_by"),
    [(2 * MAX_MESSAGE_BYTES, "SERVER"), (2 * MAX_MESSAGE_BYTES + 1, "CLIENT")],
)
def test_twice_the_largest_message_is_sent_and_what_grpc_refuses_comes_with_the_limit_to_look_at(
    size: int, refused_by: str
) -> None:
    # The fake's server takes what gRPC takes by default, 4 MiB.
    with serving(FakeTeacher()) as address:
        connection = Connection(address, Role.TEACHER, timeout_seconds=60)
        send = connection.channel.unary_unary("/distill.v1.TeacherService/GetModelInfo")
        told = rf"{refused_by}: .* larger than max.*; .*Limits\.max_message_bytes"
        with pytest.raises(ServiceError, match=told) as caught:
            connection.call(
                lambda timeout: send(bytes(size), timeout=timeout), connection.deadline(None)
            )
        assert (caught.value.code, caught.value.attempts) == ("RESOURCE_EXHAUSTED", 1)
        connection.close()


def test_the_address_of_the_other_service_is_recognised() -> None:
    with (
        serving(FakeTeacher()) as address,
        StudentClient(address, retry=ONCE) as student,
        pytest.raises(ServiceError, match=f"is {address} a teacher, where a student") as caught,
    ):
        student.model_info()
    assert caught.value.code == "UNIMPLEMENTED"
