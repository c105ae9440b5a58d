"""Gives each example of a batch its targets: rows that the client relayed with it, or that the
student pulls from a teacher."""

import time
from collections.abc import Mapping, Sequence

import grpc

from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.rows import Rows
from student_service.edge.batch_stream import ReceivedBatch
from student_service.edge.chunks import assemble_prompts
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
        InvalidFieldError: a bad chunk, or rows that no chunk describes.
        LimitExceededError: more than the service accepts, or results too large for one message.

    What `TeacherPool.pull` raises passes through.
    """
    started = time.monotonic()
    prompts, pulled_bytes = received.prompts, 0
    if received.batch.HasField("pull"):
        pull = received.batch.pull
        chunks, pulled_bytes = teachers.pull(
            pull.teacher, pull.scoring, context, max_bytes=limits.max_request_bytes
        )
        objective = OBJECTIVES[received.loss.objective]
        prompts = assemble_prompts(chunks, limits, vocab_size, objective)
    batch = TrainingBatch(loss=received.loss, examples=attach_targets(received.examples, prompts))
    check_result_size(batch, received.batch)
    return batch, pulled_bytes, time.monotonic() - started


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
