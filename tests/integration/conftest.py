"""Both services as real processes on a tiny random model, for all tests of this folder."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.student import StudentClient
from client.teacher import TeacherClient
from tests.support.processes import ServiceProcess


@pytest.fixture(scope="session")
def teacher_process(tiny_model_directory: Path, tmp_path_factory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("teacher")
    with ServiceProcess("teacher_service", directory, model=tiny_model_directory) as process:
        yield process


@pytest.fixture(scope="session")
def student_process(
    tiny_model_directory: Path, teacher_process: ServiceProcess, tmp_path_factory
) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("student")
    with ServiceProcess(
        "student_service",
        directory,
        "--runs-dir",
        str(directory / "runs"),
        "--teacher",
        f"main={teacher_process.address}",
        model=tiny_model_directory,
    ) as process:
        yield process


@pytest.fixture
def teacher(teacher_process: ServiceProcess) -> Iterator[TeacherClient]:
    with TeacherClient(teacher_process.address) as client:
        yield client


@pytest.fixture
def student(student_process: ServiceProcess) -> Iterator[StudentClient]:
    with StudentClient(student_process.address) as client:
        yield client


@pytest.fixture
def run_name() -> str:
    """A name of its own for every test, for all of them share the services."""
    return f"run-{uuid.uuid4().hex[:8]}"
