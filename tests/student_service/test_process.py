"""The student as a process: how it ends."""

import os
import signal
import time
from pathlib import Path

import grpc
import numpy as np

from client.services.local import STUDENT_MODULE, LocalService
from distill.tensors import encode_int32
from distill.v1 import student_service_pb2 as pb
from distill.v1 import training_pb2
from distill.v1.student_service_pb2_grpc import StudentServiceStub

EXAMPLE_TOKENS = 512
EXAMPLE_COUNT = 1024
"""A thousand pieces of compute: tens of seconds."""


def batch_of(example_count, *, sequence_number):
    tokens = np.arange(EXAMPLE_TOKENS) % 500
    batch = training_pb2.Batch(
        objective=training_pb2.OBJECTIVE_CROSS_ENTROPY, example_count=example_count
    )
    mutation = training_pb2.Mutation(run_id="run", writer_epoch=1, sequence_number=sequence_number)
    yield pb.ForwardBackwardRequest(header=pb.ForwardBackwardHeader(mutation=mutation, batch=batch))
    example = training_pb2.Example(
        input_tokens=encode_int32(tokens),
        token_targets=training_pb2.TokenTargets(token_ids=encode_int32(tokens)),
    )
    for _ in range(example_count):
        yield pb.ForwardBackwardRequest(example=example)
    yield pb.ForwardBackwardRequest(end=training_pb2.BatchEnd())


def test_sigterm_ends_a_batch_under_way_after_the_grace_and_the_process_with_code_0(
    tiny_model_directory: Path, tmp_path: Path
) -> None:
    arguments = [
        *("--model", str(tiny_model_directory), "--cache-dir", str(tmp_path / "cache")),
        *("--runs-dir", str(tmp_path / "runs"), "--micro-batch-tokens", str(EXAMPLE_TOKENS)),
        *("--grace-seconds", "1"),
    ]
    with (
        LocalService(STUDENT_MODULE, arguments, log_path=tmp_path / "log") as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stub = StudentServiceStub(channel)
        config = training_pb2.RunConfig(lora=training_pb2.LoraConfig(rank=1))
        stub.CreateRun(pb.CreateRunRequest(run_id="run", config=config))
        # Compiled before: a compilation is one piece, and a long one.
        stub.ForwardBackward(batch_of(1, sequence_number=1), timeout=300)
        call = stub.ForwardBackward.future(batch_of(EXAMPLE_COUNT, sequence_number=2), timeout=300)
        time.sleep(2)  # received, and the device is in it
        assert not call.done()
        stopping = time.monotonic()
        os.kill(service.pid, signal.SIGTERM)
        process = service._process
        assert process is not None
        assert process.wait(60) == 0
        # One second of grace, the piece under way, and the interpreter's own end.
        assert time.monotonic() - stopping < 8
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert "stopped" in (tmp_path / "log").read_text()
