"""What changes nothing stops costing compute when its caller leaves."""

import threading
import time
import uuid

import grpc
import numpy as np
import pytest

from client.settings import LoraConfig
from distill.tensors import encode_int32
from distill.v1 import scoring_pb2, training_pb2
from distill.v1 import student_service_pb2 as pb
from distill.v1.student_service_pb2_grpc import StudentServiceStub
from tests.support.waiting import wait_until

LORA = LoraConfig(rank=2)
TOKENS = encode_int32(np.arange(3, 12))


@pytest.fixture
def stub(in_process):
    with grpc.insecure_channel(in_process.address) as channel:
        yield StudentServiceStub(channel)


@pytest.fixture
def run(student):
    run = student.create_run(f"run-{uuid.uuid4().hex[:8]}", lora=LORA)
    run.save_checkpoint("saved")
    return run


def forward_parts(run_id, weights=None):
    batch = training_pb2.Batch(objective=training_pb2.OBJECTIVE_CROSS_ENTROPY, example_count=1)
    yield pb.ForwardRequest(header=pb.ForwardHeader(run_id=run_id, batch=batch, weights=weights))
    targets = training_pb2.TokenTargets(token_ids=TOKENS)
    yield pb.ForwardRequest(
        example=training_pb2.Example(input_tokens=TOKENS, token_targets=targets)
    )
    yield pb.ForwardRequest(end=training_pb2.BatchEnd())


def test_a_forward_whose_caller_left_computes_no_further_piece(in_process, stub, run, monkeypatch):
    begun, closed, pieces = threading.Event(), threading.Event(), []

    def long_forward(*_):
        try:
            for index in range(2000):
                pieces.append(index)
                begun.set()
                time.sleep(0.005)
                yield None
        finally:
            closed.set()

    monkeypatch.setattr(in_process.trainer, "forward", long_forward)
    call = stub.Forward.future(forward_parts(run.run_id), timeout=60)
    assert begun.wait(20)
    call.cancel()
    assert closed.wait(20)
    assert len(pieces) < 2000


CHECKPOINT = training_pb2.WeightsRef(checkpoint="saved")

READS = {
    "export of a checkpoint": lambda stub, run_id: stub.ExportWeights(
        pb.ExportWeightsRequest(run_id=run_id, weights=CHECKPOINT)
    ),
    "export of the present weights": lambda stub, run_id: stub.ExportWeights(
        pb.ExportWeightsRequest(run_id=run_id)
    ),
    "scoring under a checkpoint": lambda stub, run_id: stub.StreamTopK(
        pb.StudentServiceStreamTopKRequest(
            run_id=run_id,
            weights=CHECKPOINT,
            scoring=scoring_pb2.Scoring(
                prompts=[scoring_pb2.ScoredPrompt(token_ids=TOKENS)], top_k=2
            ),
        )
    ),
    "a forward under a checkpoint": lambda stub, run_id: stub.Forward.future(
        forward_parts(run_id, CHECKPOINT)
    ),
    "a forward under the base": lambda stub, run_id: stub.Forward.future(
        forward_parts(run_id, training_pb2.WeightsRef(base=training_pb2.BaseWeights()))
    ),
}


@pytest.mark.parametrize("read", sorted(READS))
def test_a_read_whose_caller_left_before_its_turn_never_starts(
    in_process, stub, run, monkeypatch, read
):
    begun, streams = [], []
    genuine = in_process.queue.stream

    def watched(iterator, **options):
        def pieces():
            begun.append(read)
            yield from iterator

        stream = genuine(pieces(), **options)
        streams.append(stream)
        return stream

    with in_process.device_held(), monkeypatch.context() as patch:
        patch.setattr(in_process.queue, "stream", watched)
        call = READS[read](stub, run.run_id)
        wait_until(lambda: streams)
        call.cancel()
        wait_until(lambda: streams[0]._cancelled)
    in_process.queue.run(lambda: None)  # everything before it has had its turn
    assert begun == []
    assert len(streams) == 1
