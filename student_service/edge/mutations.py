"""Mutations, the RPCs that change a run: each has a ticket and is applied exactly once, in turn."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from distill.rpc.byte_budget import held_memory
from distill.rpc.deadline import remaining_seconds
from distill.v1 import training_pb2
from student_service.edge.digests import request_digest
from student_service.edge.validation import check_mutation
from student_service.runs.kept_answers import Ticket
from student_service.runs.registry import RunRegistry
from student_service.runs.run import Run
from student_service.runs.run_state import RunState
from student_service.runs.sequencer import Operation

Answer = TypeVar("Answer", bound=Message)

RunOperation: TypeAlias = Callable[[Run, RunState], tuple[RunState, Answer]]
"""A mutation of a run, from its state to the proposed one and the answer."""


def make_ticket(
    header: training_pb2.Mutation, operation: str, *understood: object, field: str = "mutation"
) -> Ticket:
    """The ticket of a mutation: its place in the sequence and what it means.

    Args:
        header: of the request.
        operation: name of the RPC.
        understood: what the request says beside its header, parsed: a default that is spelled out
            is the same as one that is left out.
        field: of the header, for errors.

    Raises:
        InvalidFieldError: a bad header.
    """
    check_mutation(header, field)
    return Ticket(
        writer_epoch=header.writer_epoch,
        sequence_number=header.sequence_number,
        digest=request_digest(operation, *understood),
    )


def mutate(
    runs: RunRegistry,
    header: training_pb2.Mutation,
    ticket: Ticket,
    context: grpc.ServicerContext,
    operation: RunOperation[Answer],
) -> Answer:
    """Apply a unary mutation exactly once.

    Args:
        runs: where its run is.
        header: names the run.
        ticket: of `make_ticket`.
        context: of the call.
        operation: the mutation.

    Raises:
        NotFoundError: there is no such run.

    What `Sequencer.execute` raises passes through.
    """
    run = runs.get(header.run_id, "mutation.run_id")
    return apply_once(run, ticket, lambda state: operation(run, state), context)


def apply_once(
    run: Run, ticket: Ticket, operation: Operation[RunState, Answer], context: grpc.ServicerContext
) -> Answer:
    """Run a mutation in its turn, or give its kept answer again; see `Sequencer.execute`."""
    # So that a mutation that waits for its turn notices when its caller leaves.
    context.add_callback(run.sequencer.wake)
    answer, is_repeated = run.apply(
        ticket,
        operation,
        timeout_seconds=remaining_seconds(context),
        is_active=context.is_active,
        held_bytes=held_memory(context).byte_count,
    )
    return replayed(answer) if is_repeated else answer


def replayed(answer: Answer) -> Answer:
    """A copy of a kept answer, marked as `replayed` where the message has that field."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    if "replayed" in copy.DESCRIPTOR.fields_by_name:
        copy.replayed = True  # type: ignore[attr-defined] # just looked up
    return copy
