"""Reads a client stream of header, examples and chunks into a checked batch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES, ObjectiveSpec
from distill.v1 import scoring_pb2, student_service_pb2, training_pb2
from student_service.edge.examples import CheckedExample, ExampleParser, PromptRows
from student_service.edge.teacher_pool import TeacherPool
from student_service.edge.validation import parse_loss
from student_service.training.batch import LossSettings

RequestT = TypeVar(
    "RequestT", student_service_pb2.ForwardBackwardRequest, student_service_pb2.ForwardRequest
)


@dataclass(frozen=True, kw_only=True)
class ReceivedBatch:
    """A batch as it was sent: its examples are checked, its chunks are not yet."""

    loss: LossSettings
    """What is minimised."""

    batch: training_pb2.Batch
    """The header, for its result options and the teacher."""

    examples: tuple[CheckedExample, ...]
    """As many as the header said."""

    chunks: tuple[scoring_pb2.TopKChunk, ...]
    """Relayed by the client; empty when a teacher has them or the examples need none."""

    digest: bytes
    """Digest of everything but the header's mutation and the order of the chunks."""


class BatchReader(Generic[RequestT]):
    """Reads one client stream."""

    def __init__(
        self, requests: Iterator[RequestT], limits: RequestLimits, vocab_size: int
    ) -> None:
        self._requests: Iterator[RequestT] = requests
        self._limits = limits
        self._vocab_size = vocab_size
        self._bytes = 0

    def header(self) -> Any:
        """The first message's header, of the stream's own type.

        Raises:
            InvalidFieldError: the stream does not start with a header.
        """
        first = self._next()
        if first is None or first.WhichOneof("part") != "header":
            got = "nothing" if first is None else first.WhichOneof("part")
            raise InvalidFieldError("part", f"the first message must be the header, got {got}")
        return first.header

    def batch(self, batch: training_pb2.Batch, teachers: TeacherPool) -> ReceivedBatch:
        """Everything after the header, as one batch.

        Args:
            batch: of the header.
            teachers: which the header may name.

        Raises:
            InvalidFieldError: a bad field, or parts missing or out of order.
            LimitExceededError: more than the service accepts.
        """
        loss = parse_loss(batch, self._limits)
        pulls = batch.HasField("pull")
        if pulls:
            teachers.check_name(batch.pull.teacher, "batch.pull.teacher")
            _check_pulled_support(batch.pull.scoring, OBJECTIVES[loss.objective])
        digest = hashlib.sha256(batch.SerializeToString(deterministic=True))
        parser = ExampleParser(loss, self._limits, self._vocab_size)
        examples = []
        for index in range(batch.example_count):
            request = self._next()
            if request is None or request.WhichOneof("part") != "example":
                got = "the end" if request is None else request.WhichOneof("part")
                raise InvalidFieldError(
                    "part",
                    f"the header says {batch.example_count} examples, got {got} after {index}",
                )
            examples.append(parser.parse(request.example, index))
            digest.update(_digest(request.example))
        chunks = []
        while (request := self._next()) is not None:
            if request.WhichOneof("part") != "chunk":
                raise InvalidFieldError(
                    "part",
                    f"only chunks follow the {batch.example_count} examples, got "
                    f"{request.WhichOneof('part')}",
                )
            chunks.append(request.chunk)
        needs_chunks = any(isinstance(example.targets, PromptRows) for example in examples)
        if chunks and (pulls or not needs_chunks):
            reason = "the header names a teacher" if pulls else "the examples name their targets"
            raise InvalidFieldError("chunk", f"no chunk may follow: {reason}")
        if pulls:
            _check_pulled_rows(examples, batch.pull.scoring)
        # Sorted: when the client repeats the request, its chunks may interleave in another order.
        for chunk_digest in sorted(map(_digest, chunks)):
            digest.update(chunk_digest)
        return ReceivedBatch(
            loss=loss,
            batch=batch,
            examples=tuple(examples),
            chunks=tuple(chunks),
            digest=digest.digest(),
        )

    def _next(self) -> RequestT | None:
        request = next(self._requests, None)
        if request is not None:
            self._bytes += request.ByteSize()
            if self._bytes > self._limits.max_request_bytes:
                raise LimitExceededError(
                    "request bytes", self._limits.max_request_bytes, self._bytes
                )
        return request


def _digest(message: "training_pb2.Example | scoring_pb2.TopKChunk") -> bytes:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def _check_pulled_support(scoring: scoring_pb2.Scoring, objective: ObjectiveSpec) -> None:
    """Refuse a kind of support that the objective cannot use, before the teacher computes it."""
    is_sampled = scoring.HasField("sampled")
    if is_sampled != objective.needs_draw_weights:
        wanted = "must be" if objective.needs_draw_weights else "must not be"
        raise InvalidFieldError(
            "batch.pull.scoring.support",
            f"{wanted} sampled for the objective {objective.name}, got "
            f"{scoring.WhichOneof('support') or 'top_k'}",
        )


def _check_pulled_rows(examples: list[CheckedExample], scoring: scoring_pb2.Scoring) -> None:
    """Refuse rows that the scoring request will not return, before the teacher computes any."""
    for index, example in enumerate(examples):
        rows = example.targets
        if not isinstance(rows, PromptRows):
            raise InvalidFieldError("batch.pull", "the examples name their targets themselves")
        field = f"examples[{index}].distribution_targets"
        if rows.prompt_index >= len(scoring.prompts):
            raise InvalidFieldError(
                f"{field}.prompt_index",
                f"must be in [0, {len(scoring.prompts)}), got {rows.prompt_index}",
            )
        prompt = scoring.prompts[rows.prompt_index]
        first = prompt.score_from if prompt.HasField("score_from") else 1
        last = len(prompt.token_ids.values)
        end = rows.prompt_offset + rows.row_count
        if rows.prompt_offset < first or end > last:
            raise InvalidFieldError(
                f"{field}.prompt_offset",
                f"rows [{rows.prompt_offset}, {end}) are wanted, but the scoring request asks for "
                f"[{first}, {last})",
            )
