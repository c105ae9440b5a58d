"""Both services as real processes on a tiny random model, for all tests of this folder."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.services.local import STUDENT_MODULE, TEACHER_MODULE, LocalService
from client.student import StudentClient
from client.teacher import TeacherClient


@pytest.fixture(scope="session")
def teacher_process(tiny_model_directory: Path, tmp_path_factory) -> Iterator[LocalService]:
    directory = tmp_path_factory.mktemp("teacher")
    arguments = ["--model", str(tiny_model_directory), "--cache-dir", str(directory)]
    with LocalService(TEACHER_MODULE, arguments, log_path=directory / "log") as service:
        yield service


@pytest.fixture(scope="session")
def student_process(
    tiny_model_directory: Path, teacher_process: LocalService, tmp_path_factory
) -> Iterator[LocalService]:
    directory = tmp_path_factory.mktemp("student")
    arguments = [
        *("--model", str(tiny_model_directory), "--cache-dir", str(directory)),
        *("--runs-dir", str(directory / "runs")),
        *("--teacher", f"main={teacher_process.address}"),
    ]
    with LocalService(STUDENT_MODULE, arguments, log_path=directory / "log") as service:
        yield service


@pytest.fixture
def teacher(teacher_process: LocalService) -> Iterator[TeacherClient]:
    with TeacherClient(teacher_process.address) as client:
        yield client


@pytest.fixture
def student(student_process: LocalService) -> Iterator[StudentClient]:
    with StudentClient(student_process.address) as client:
        yield client


@pytest.fixture
def run_name() -> str:
    """A name of its own for every test, for all of them share the services."""
    return f"run-{uuid.uuid4().hex[:8]}"
