"""Gives each example of a batch its targets: rows that the client relayed with it, or that the
student pulls from a teacher."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import grpc

from distill.errors import InvalidFieldError, WrongStateError
from distill.limits import MESSAGE_OVERHEAD_BYTES, RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.rows import Rows
from distill.rpc.byte_budget import held_memory
from distill.v1 import scoring_pb2
from student_service.edge.batch_stream import ReceivedBatch
from student_service.edge.chunks import ChunkAssembler
from student_service.edge.examples import CheckedExample, PromptRows
from student_service.edge.formatting import check_result_size
from student_service.edge.teacher_pool import TeacherPool
from student_service.training.batch import TrainingBatch, TrainingExample


def with_targets(
    received: ReceivedBatch,
    context: grpc.ServicerContext,
    teachers: TeacherPool,
    limits: RequestLimits,
    vocab_size: int,
) -> tuple[TrainingBatch, int, float]:
    """The batch with its targets, the bytes that were pulled for it, and the seconds this took.

    Raises:
        InvalidFieldError: an example names rows that no chunk describes.
        LimitExceededError: more than the service accepts, or results too large for one message.
        HeldBytesError: no room now for what the teacher sends.
        WrongStateError: a chunk of the teacher is wrong, or of no use for the objective.

    What `TeacherPool.pull` raises passes through.
    """
    started = time.monotonic()
    prompts, pulled_bytes = received.prompts, 0
    if received.batch.HasField("pull"):
        pull = received.batch.pull
        objective = OBJECTIVES[received.loss.objective]
        # The teacher scores every prompt that it was sent, also one that no example names.
        wanted = range(len(pull.scoring.prompts))
        assembler = ChunkAssembler(wanted, limits, vocab_size, objective)

        memory = held_memory(context)

        def receive(chunk: scoring_pb2.TopKChunk, byte_count: int) -> None:
            memory.add(byte_count + MESSAGE_OVERHEAD_BYTES)
            with _chunks_of(pull.teacher):
                assembler.add(chunk)

        pulled_bytes = teachers.pull(
            pull.teacher,
            pull.scoring,
            context,
            max_bytes=limits.max_request_bytes,
            receive=receive,
        )
        with _chunks_of(pull.teacher):
            prompts = assembler.finish()
    batch = TrainingBatch(loss=received.loss, examples=attach_targets(received.examples, prompts))
    check_result_size(batch, received.batch)
    return batch, pulled_bytes, time.monotonic() - started


@contextmanager
def _chunks_of(teacher: str) -> Iterator[None]:
    """Inside, a wrong chunk is the teacher's fault: the caller sent none, and has no such field."""
    try:
        yield
    except InvalidFieldError as error:
        raise WrongStateError(f"teacher {teacher!r} sent {error.message}") from error


def attach_targets(
    examples: Sequence[CheckedExample], prompts: Mapping[int, Rows]
) -> tuple[TrainingExample, ...]:
    """Give every example its targets.

    Raises:
        InvalidFieldError: an example names a prompt or rows that no chunk described.
    """
    return tuple(
        TrainingExample(
            input_tokens=example.input_tokens,
            target_offset=example.target_offset,
            targets=_named_rows(example.targets, prompts, f"examples[{index}]")
            if isinstance(example.targets, PromptRows)
            else example.targets,
            row_weights=example.row_weights,
        )
        for index, example in enumerate(examples)
    )


def _named_rows(wanted: PromptRows, prompts: Mapping[int, Rows], field: str) -> Rows:
    """The rows of the scored prompt that an example names."""
    field = f"{field}.distribution_targets"
    prompt = prompts.get(wanted.prompt_index)
    if prompt is None:
        raise InvalidFieldError(
            f"{field}.prompt_index", f"no chunk describes prompt {wanted.prompt_index}"
        )
    end_row = wanted.prompt_offset + wanted.row_count
    if wanted.prompt_offset < prompt.first_row or end_row > prompt.end_row:
        raise InvalidFieldError(
            f"{field}.prompt_offset",
            f"rows [{wanted.prompt_offset}, {end_row}) of prompt {wanted.prompt_index} are wanted, "
            f"but its chunks describe [{prompt.first_row}, {prompt.end_row})",
        )
    return prompt.slice(wanted.prompt_offset, end_row)
