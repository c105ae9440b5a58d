"""A connection says what is wrong with its address, and ends when it is told to."""

import subprocess
import sys

import pytest

from client.connection import RetryPolicy
from client.errors import ServiceError
from client.student import StudentClient
from client.teacher import TeacherClient
from tests.client.fakes import FakeTeacher, serving

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


@pytest.mark.parametrize("address", ["localhost", "", "127.0.0.1:", "host:name"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=f"address: must be HOST:PORT, got '{address}'"):
        TeacherClient(address)


def test_a_service_that_does_not_run_comes_with_the_command_that_starts_it() -> None:
    with (
        StudentClient("127.0.0.1:1", retry=ONCE) as student,
        pytest.raises(
            ServiceError, match=r"is a student running at 127\.0\.0\.1:1\? distill-student starts"
        ) as caught,
    ):
        student.model_info()
    assert caught.value.code == "UNAVAILABLE"


def test_the_address_of_the_other_service_is_recognised() -> None:
    with (
        serving(FakeTeacher()) as address,
        StudentClient(address, retry=ONCE) as student,
        pytest.raises(ServiceError, match=f"is {address} the teacher, where the student") as caught,
    ):
        student.model_info()
    assert caught.value.code == "UNIMPLEMENTED"
