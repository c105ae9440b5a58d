"""The teacher as a process: start, refusals, and every way to stop."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distill.tensors import encode_int32
from distill.v1 import scoring_pb2
from distill.v1 import teacher_service_pb2 as pb
from distill.v1.teacher_service_pb2_grpc import TeacherServiceStub

START_SECONDS = 120.0
STOP_SECONDS = 30.0


@dataclass
class Teacher:
    """A teacher process that answers."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def wait(self) -> int:
        return self.process.wait(STOP_SECONDS)


StartTeacher = Callable[..., Teacher]


@pytest.fixture
def start_teacher(tiny_model_directory: Path, tmp_path: Path) -> Iterator[StartTeacher]:
    processes = []

    def start(*arguments: str) -> Teacher:
        ready, log = tmp_path / "ready.json", tmp_path / "log"
        command = [sys.executable, "-m", "teacher_service", "--model", str(tiny_model_directory)]
        command += ["--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        command += ["--cache-dir", str(tmp_path / "cache"), *arguments]
        with log.open("wb") as log_file:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log_file)
        processes.append(process)
        end = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        content = json.loads(ready.read_text())
        assert content["pid"] == process.pid
        return Teacher(process=process, address=content["address"], log=log)

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()


def run_teacher(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "teacher_service", *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        stdin=subprocess.DEVNULL,
    )


def test_the_process_is_healthy_when_ready_and_sigterm_ends_it_with_code_0(
    start_teacher: StartTeacher,
) -> None:
    teacher = start_teacher("--exit-when-stdin-closes")
    with grpc.insecure_channel(teacher.address) as channel:
        for service in ("", "distill.v1.TeacherService"):
            health = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=STOP_SECONDS
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
    teacher.process.send_signal(signal.SIGTERM)
    assert teacher.wait() == 0
    log = teacher.log.read_text()
    assert f"serving tiny (59,280 parameters, float32) at {teacher.address}" in log
    assert "stopping: SIGTERM" in log
    # "Errors and logs leak no path": not even that of the model.
    assert str(teacher.log.parent) not in log


def test_the_end_of_standard_input_ends_the_process_with_code_0(
    start_teacher: StartTeacher,
) -> None:
    teacher = start_teacher("--exit-when-stdin-closes")
    assert teacher.process.stdin is not None
    teacher.process.stdin.close()
    assert teacher.wait() == 0


def test_a_request_in_progress_finishes_during_the_drain(start_teacher: StartTeacher) -> None:
    teacher = start_teacher("--grace-seconds", "60")
    # More samples than advance together: the first are sent long before the last is begun.
    request = pb.TeacherServiceSampleRequest(
        sampling=scoring_pb2.Sampling(
            prompts=[encode_int32(np.arange(9))],
            params=scoring_pb2.SamplingParams(
                max_tokens=60, samples_per_prompt=97, ignore_end_tokens=True
            ),
        )
    )
    with grpc.insecure_channel(teacher.address) as channel:
        call = TeacherServiceStub(channel).Sample(request, timeout=START_SECONDS)
        samples = [next(call)]
        teacher.process.send_signal(signal.SIGINT)
        samples += call
    assert [len(answer.sequence.token_ids.values) for answer in samples] == [60] * 97
    assert teacher.wait() == 0
    assert "stopping: SIGINT" in teacher.log.read_text()


def test_a_busy_port_is_one_line_and_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run_teacher("--listen", address)
    assert result.returncode == 2
    expected = (
        f"distill-teacher: error: cannot listen on {address}: the port is in use; "
        "--listen takes another, or port 0 for a free one\n"
    )
    assert result.stderr == expected


def test_a_bad_model_is_one_line_and_code_2() -> None:
    result = run_teacher("--model", "no-such-model", "--listen", "127.0.0.1:0")
    assert result.returncode == 2
    assert result.stderr.startswith("distill-teacher: error: model 'no-such-model'")
    assert result.stderr.count("\n") == 1


def test_help_shows_every_argument_with_its_default() -> None:
    result = run_teacher("--help")
    assert result.returncode == 0
    options = [word for word in result.stdout.split() if word.startswith("--")]
    assert "--model" in options
    described = " ".join(result.stdout.split("options:")[1].split())
    # All but --help itself, and each switch once.
    mentions = described.count("give --") + described.count(", --no-")
    arguments = described.count(" --") - 1 - mentions
    assert described.count("(default: ") == arguments


def test_a_signal_during_the_start_ends_it_with_code_0(tiny_model_directory: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "teacher_service", "--model", str(tiny_model_directory)),
            *("--listen", "127.0.0.1:0", "--exit-when-stdin-closes"),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    # Standard input is at its end from the beginning.
    _, stderr = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0
    assert b"Traceback" not in stderr
