"""The distributions of a received batch: relayed with it, or pulled from a teacher."""

import time

import grpc

from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES
from student_service.edge.batch_stream import ReceivedBatch
from student_service.edge.distributions import assemble_prompts, attach_targets
from student_service.edge.formatting import check_result_size
from student_service.edge.teacher_pool import TeacherPool
from student_service.training.batch import TrainingBatch


def with_targets(
    received: ReceivedBatch,
    context: grpc.ServicerContext,
    teachers: TeacherPool,
    limits: RequestLimits,
    vocab_size: int,
) -> tuple[TrainingBatch, int, float]:
    """The batch with its distributions, the bytes pulled, and the seconds it took."""
    started = time.monotonic()
    chunks, pulled_bytes = list(received.chunks), 0
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
