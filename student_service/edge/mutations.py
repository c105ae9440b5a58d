"""Mutations, the RPCs that change a run: each has a ticket and is applied exactly once, in turn."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from distill.rpc.deadline import remaining_seconds
from distill.v1 import training_pb2
from student_service.edge.validation import check_mutation
from student_service.runs.registry import RunRegistry
from student_service.runs.run import Run
from student_service.runs.sequencer import Ticket

Answer = TypeVar("Answer", bound=Message)


def mutate(
    runs: RunRegistry,
    request: Message,
    context: grpc.ServicerContext,
    operation: Callable[[Run, training_pb2.Mutation], Answer],
) -> Answer:
    """Apply a unary mutation exactly once.

    Args:
        runs: where its run is.
        request: has the field `mutation`.
        context: of the call.
        operation: changes the run and makes the answer.

    Raises:
        InvalidFieldError: a bad header.
        NotFoundError: there is no such run.
    """
    header: training_pb2.Mutation = request.mutation  # type: ignore[attr-defined] # all have it
    check_mutation(header)
    run = runs.get(header.run_id, "mutation.run_id")
    ticket = request_ticket(header, request)
    return apply_once(run, ticket, lambda: operation(run, header), context)


def make_ticket(header: training_pb2.Mutation, operation: str, digest: bytes) -> Ticket:
    """The ticket of a mutation: its place in the sequence and what it does."""
    return Ticket(
        writer_epoch=header.writer_epoch,
        sequence_number=header.sequence_number,
        digest=operation.encode() + digest,
    )


def request_ticket(header: training_pb2.Mutation, request: Message) -> Ticket:
    """The ticket of a unary mutation."""
    payload = type(request)()
    payload.CopyFrom(request)
    payload.ClearField("mutation")
    digest = hashlib.sha256(payload.SerializeToString(deterministic=True)).digest()
    return make_ticket(header, type(request).__name__, digest)


def apply_once(
    run: Run, ticket: Ticket, operation: Callable[[], Answer], context: grpc.ServicerContext
) -> Answer:
    """Run a mutation in its turn, or give its kept answer again; see `Sequencer.execute`."""
    # So that a mutation that waits for its turn notices when its caller leaves.
    context.add_callback(run.sequencer.wake)
    answer, is_repeated = run.sequencer.execute(
        ticket,
        operation,
        timeout_seconds=remaining_seconds(context),
        is_active=context.is_active,
    )
    return replayed(answer) if is_repeated else answer


def replayed(answer: Answer) -> Answer:
    """A copy of a kept answer, marked as `replayed` where the message has that field."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    if "replayed" in copy.DESCRIPTOR.fields_by_name:
        copy.replayed = True  # type: ignore[attr-defined] # just looked up
    return copy
