from collections.abc import Iterator

import pytest

from client.retry import RetryPolicy
from client.run import StudentRun
from client.settings import LoraConfig
from client.student import StudentClient
from client.teacher import TeacherClient
from tests.client.fake_server import serving
from tests.client.fake_student import FakeStudent
from tests.client.fake_teacher import FakeTeacher

FAST_RETRY = RetryPolicy(attempts=3, first_delay_seconds=0.01)


@pytest.fixture
def fake_teacher() -> FakeTeacher:
    return FakeTeacher()


@pytest.fixture
def teacher(fake_teacher: FakeTeacher) -> Iterator[TeacherClient]:
    with (
        serving(fake_teacher) as address,
        TeacherClient(address, timeout_seconds=20, retry=FAST_RETRY) as client,
    ):
        yield client


@pytest.fixture
def fake_student() -> FakeStudent:
    return FakeStudent()


@pytest.fixture
def student(fake_student: FakeStudent) -> Iterator[StudentClient]:
    with (
        serving(fake_student) as address,
        StudentClient(address, timeout_seconds=20, retry=FAST_RETRY) as client,
    ):
        yield client


@pytest.fixture
def run(student: StudentClient) -> StudentRun:
    return student.create_run("run", lora=LoraConfig(rank=4))
