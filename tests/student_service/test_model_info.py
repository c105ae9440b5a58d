"""What a student says about itself, started as its process starts it."""

import grpc
import pytest

from distill.engine import process
from distill.network.adapters import model_targets
from distill.rpc.options import ServerOptions
from distill.rpc.server import RunningServer
from distill.v1 import student_service_pb2 as pb
from distill.v1.student_service_pb2_grpc import StudentServiceStub
from student_service.__main__ import load_service
from student_service.runs.sequencer import IN_FLIGHT_LIMIT

HELD_BYTES = 3 << 20


@pytest.fixture
def info(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "load_model", lambda *_, **__: in_process.model)
    for function in ("keep_freed_memory", "enable_compilation_cache", "use_full_precision"):
        monkeypatch.setattr(process, function, lambda *_: None)
    options = ServerOptions(
        model="the tiny model",
        host="127.0.0.1",
        port=0,
        ready_file=None,
        exit_when_stdin_closes=False,
        dtype="float32",
        mask_padded_vocabulary=True,
        max_top_k=None,
        max_sequence_tokens=None,
        cache_dir=None,
        max_concurrent_requests=8,
        grace_seconds=1,
        max_held_bytes=HELD_BYTES,
    )
    service = load_service(
        options,
        teachers={"main": "127.0.0.1:1"},
        runs_dir=tmp_path / "runs",
        max_runs=1,
        micro_batch_tokens=64,
        remat=False,
    )
    server = RunningServer(host="127.0.0.1", port=0)
    server.start(service)
    with grpc.insecure_channel(server.address) as channel:
        yield StudentServiceStub(channel).GetModelInfo(
            pb.StudentServiceGetModelInfoRequest(), timeout=20
        )
    server.stop(0)


def test_a_student_publishes_all_its_limits_its_teachers_and_its_targets(info, in_process):
    limits = info.model.limits
    assert limits.max_in_flight_mutations == IN_FLIGHT_LIMIT
    assert limits.max_held_bytes == limits.max_request_bytes == HELD_BYTES
    assert limits.max_message_bytes == 64 << 20
    assert info.teachers == ["main"]
    assert info.lora_target_modules == list(model_targets(in_process.model.config))
    assert "lm_head" in info.lora_target_modules
