"""What callers may rely on when the device is busy or their deadline passes."""

import errno
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from client.errors import (
    AnotherWriterError,
    ServiceError,
    UncertainMutationError,
    parse_error,
)
from client.settings import AdamW, LoraConfig, batch_settings, token_example
from distill.v1 import student_service_pb2 as pb
from distill.v1 import training_pb2
from distill.v1.student_service_pb2_grpc import StudentServiceStub
from student_service import servicer
from student_service.runs import checkpoints
from student_service.runs.checkpoints import CheckpointStore

LORA = LoraConfig(rank=2)
STEP = AdamW(learning_rate=1e-2)
HARD = batch_settings("cross_entropy")
EXAMPLE = token_example(np.arange(3, 12), target_offset=0, token_ids=np.arange(4, 13))


@pytest.fixture
def run(student):
    """A run with a gradient, one mutation old."""
    run = student.create_run(f"run-{uuid.uuid4().hex[:8]}", lora=LORA)
    run.forward_backward([EXAMPLE], HARD)
    return run


MUTATIONS = {
    "forward_backward": lambda run, **options: run.forward_backward([EXAMPLE], HARD, **options),
    "optim_step": lambda run, **options: run.optim_step(STEP, **options),
    "save_checkpoint": lambda run, **options: run.save_checkpoint("late", **options),
    "load_checkpoint": lambda run, **options: run.load_checkpoint("early", **options),
}


@pytest.mark.parametrize("operation", sorted(MUTATIONS))
def test_mutation_whose_deadline_passes_before_the_device_is_free_never_happens(
    in_process, run, operation
):
    run.save_checkpoint("early")
    before = run.state()
    mutate = MUTATIONS[operation]
    with in_process.device_held():
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            mutate(run, timeout_seconds=0.3)
        with pytest.raises(UncertainMutationError):
            mutate(run)
        assert run.resynchronize(timeout_seconds=20) == 0
    assert run.state().last_sequence_number == before.last_sequence_number
    assert run.state().step == before.step
    assert [one.name for one in run.list_checkpoints()] == ["early"]
    mutate(run)
    assert run.state().last_sequence_number == before.last_sequence_number + 1


def test_resynchronizing_waits_for_a_mutation_that_has_begun(in_process, run, monkeypatch):
    begun, release = threading.Event(), threading.Event()
    genuine = in_process.trainer.optim_step

    def slow(*args):
        begun.set()
        release.wait(20)
        return genuine(*args)

    with monkeypatch.context() as patch:
        patch.setattr(in_process.trainer, "optim_step", slow)
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            run.optim_step(STEP, timeout_seconds=0.3)
        assert begun.wait(5)
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            run.resynchronize(timeout_seconds=0.3)
        with ThreadPoolExecutor(1) as executor:
            applied = executor.submit(run.resynchronize, timeout_seconds=20)
            release.set()
            assert applied.result(20) == 1
    assert run.state().step == 1
    run.forward_backward([EXAMPLE], HARD)
    assert run.optim_step(STEP).step == 2


def test_creating_a_run_keeps_nobody_from_the_others(in_process, student, run):
    name = f"new-{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(2) as executor:
        with in_process.device_held():
            first, second = (executor.submit(student.create_run, name, lora=LORA) for _ in "ab")
            with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
                student.create_run(f"{name}-late", lora=LORA, timeout_seconds=0.3)
            assert run.state(timeout_seconds=5).last_sequence_number == 1
            assert name not in [one.run_id for one in student.list_runs(timeout_seconds=5)]
            assert not first.done()
        assert first.result(20).created == second.result(20).created
    assert f"{name}-late" not in [one.run_id for one in student.list_runs()]


def test_a_batch_whose_answer_cannot_be_made_was_not_added(student, run, monkeypatch):
    before = run.state()
    with monkeypatch.context() as patch:
        patch.setattr(servicer, "format_batch_result", lambda *_, **__: 1 / 0)
        with pytest.raises(ServiceError, match="INTERNAL"):
            run.forward_backward([EXAMPLE], HARD)
    assert run.state() == before
    assert run.resynchronize() == 0
    run.forward_backward([EXAMPLE], HARD)
    after = student.get_run(run.run_id)
    assert after.accumulated_batches == before.accumulated_batches + 1
    assert after.last_sequence_number == before.last_sequence_number + 1


def test_a_discarded_gradient_is_no_part_of_the_next_step(in_process, run):
    stub = StudentServiceStub(grpc.insecure_channel(in_process.address))
    header = training_pb2.Mutation(run_id=run.run_id, writer_epoch=1, sequence_number=2)
    answer = stub.DiscardGradient(pb.DiscardGradientRequest(mutation=header))
    assert (answer.discarded_batches, answer.discarded_rows) == (1, 9)
    assert (answer.discarded_examples, answer.replayed) == (1, False)
    assert stub.DiscardGradient(pb.DiscardGradientRequest(mutation=header)).replayed
    state = run.state()
    assert (state.accumulated_batches, state.accumulated_rows, state.last_sequence_number) == (
        0,
        0,
        2,
    )
    header.sequence_number = 3
    with pytest.raises(grpc.RpcError) as refused:
        stub.OptimStep(pb.OptimStepRequest(mutation=header, adamw=STEP))
    assert parse_error(refused.value).reason == "NO_GRADIENT"


def test_a_load_does_not_start_after_its_deadline(run, monkeypatch):
    run.save_checkpoint("saved")
    before = run.state()
    genuine = CheckpointStore.load

    def slow(store, *names):
        loaded = genuine(store, *names)
        time.sleep(0.6)
        return loaded

    monkeypatch.setattr(CheckpointStore, "load", slow)
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        run.load_checkpoint("saved", timeout_seconds=0.3)
    assert run.resynchronize() == 0
    assert run.state().last_sequence_number == before.last_sequence_number


def attach(stub, run, **fields):
    return stub.CreateRun(
        pb.CreateRunRequest(run_id=run.run_id, config=run.created.config, **fields)
    )


def test_a_repeated_attempt_to_attach_gets_its_own_epoch_and_fences_nobody(in_process, run):
    stub = StudentServiceStub(grpc.insecure_channel(in_process.address))
    first = attach(stub, run, take_over=True, attach_id="first")
    again = attach(stub, run, take_over=True, attach_id="first")
    assert first.writer_epoch == again.writer_epoch == run.created.writer_epoch + 1
    second = attach(stub, run, take_over=True, attach_id="second")
    assert second.writer_epoch == first.writer_epoch + 1
    late = attach(stub, run, take_over=True, attach_id="first")
    assert late.writer_epoch == first.writer_epoch
    assert late.run.writer_epoch == second.writer_epoch
    with pytest.raises(grpc.RpcError) as refused:
        attach(stub, run, take_over=True, expected_writer_epoch=first.writer_epoch)
    error = parse_error(refused.value)
    assert (error.code, error.reason) == ("ABORTED", "WRITER_FENCED")
    assert error.metadata["writer_epoch"] == str(second.writer_epoch)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"expected_writer_epoch": 1}, "INVALID_ARGUMENT"),
        ({"expected_writer_epoch": 0, "take_over": True}, "INVALID_ARGUMENT"),
        ({"attach_id": "a b", "take_over": True}, "INVALID_ARGUMENT"),
        ({"run_id": "gone", "expected_writer_epoch": 1, "take_over": True}, "NOT_FOUND"),
    ],
)
def test_an_attempt_to_attach_that_cannot_be_meant_changes_nothing(
    in_process, student, run, fields, code
):
    stub = StudentServiceStub(grpc.insecure_channel(in_process.address))
    before = student.list_runs()
    request = pb.CreateRunRequest(run_id=run.run_id, config=run.created.config)
    request.MergeFrom(pb.CreateRunRequest(**fields))
    with pytest.raises(grpc.RpcError) as refused:
        stub.CreateRun(request)
    assert parse_error(refused.value).code == code
    assert student.list_runs() == before


def test_a_repeated_step_is_the_same_when_it_means_the_same(in_process, run):
    stub = StudentServiceStub(grpc.insecure_channel(in_process.address))
    header = training_pb2.Mutation(run_id=run.run_id, writer_epoch=1, sequence_number=2)
    step = {"mutation": header, "adamw": AdamW(learning_rate=1e-2)}
    first = stub.OptimStep(pb.OptimStepRequest(**step))
    step["adamw"] = AdamW(learning_rate=1e-2, beta1=0.9, beta2=0.95, weight_decay=0.0)
    step["normalization"] = training_pb2.GRADIENT_NORMALIZATION_NONE
    again = stub.OptimStep(pb.OptimStepRequest(**step))
    assert again.replayed
    again.replayed = False
    assert again == first
    step["adamw"].beta1 = 0.8
    with pytest.raises(grpc.RpcError) as refused:
        stub.OptimStep(pb.OptimStepRequest(**step))
    assert parse_error(refused.value).reason == "SEQUENCE_REUSED"


def test_a_save_whose_last_sync_failed_can_be_repeated(run, monkeypatch):
    genuine, failures = checkpoints.sync, [OSError(errno.EIO, "no such luck")]

    def failing(path):
        if failures and path.name == "checkpoints":
            raise failures.pop()
        genuine(path)

    monkeypatch.setattr(checkpoints, "sync", failing)
    with pytest.raises(ServiceError, match="FAILED_PRECONDITION") as refused:
        run.save_checkpoint("saved")
    assert refused.value.reason == "STORAGE_FAILED"
    assert not failures
    assert run.list_checkpoints() == []
    run.save_checkpoint("saved")
    assert [one.name for one in run.list_checkpoints()] == ["saved"]


def test_of_two_handles_of_a_run_one_writes_and_the_other_is_told_how(student, run):
    reader = student.create_run(run.run_id, lora=LORA)
    assert reader.state() == run.state()
    for change in (lambda: reader.optim_step(STEP), reader.resynchronize):
        with pytest.raises(AnotherWriterError, match="take_over=True"):
            change()
    assert run.optim_step(STEP).step == 1
    successor = student.create_run(run.run_id, lora=LORA, take_over=True)
    successor.forward_backward([EXAMPLE], HARD)
    with pytest.raises(ServiceError, match="ABORTED") as fenced:
        run.forward_backward([EXAMPLE], HARD)
    assert fenced.value.reason == "WRITER_FENCED"


def test_a_deletion_can_be_repeated_after_its_name_was_used_again(in_process, student, run):
    stub = StudentServiceStub(grpc.insecure_channel(in_process.address))
    epoch = run.created.writer_epoch
    header = training_pb2.Mutation(run_id=run.run_id, writer_epoch=epoch, sequence_number=2)
    assert not stub.DeleteRun(pb.DeleteRunRequest(mutation=header)).replayed
    student.create_run(run.run_id, lora=LORA)
    assert stub.DeleteRun(pb.DeleteRunRequest(mutation=header)).replayed
    assert student.get_run(run.run_id).last_sequence_number == 0
