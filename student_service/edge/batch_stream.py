"""Reads a client stream of header, examples and chunks into a checked batch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distill.errors import IncompleteStreamError, InvalidFieldError, LimitExceededError
from distill.limits import MESSAGE_OVERHEAD_BYTES, RequestLimits
from distill.ops.objectives import OBJECTIVES, ObjectiveSpec
from distill.v1 import scoring_pb2, student_service_pb2, training_pb2
from student_service.edge.examples import CheckedExample, ExampleParser, PromptRows
from student_service.edge.teacher_pool import TeacherPool
from student_service.edge.validation import parse_loss
from student_service.training.batch import LossSettings

RequestT = TypeVar(
    "RequestT", student_service_pb2.ForwardBackwardRequest, student_service_pb2.ForwardRequest
)

ENDED = "nothing"
"""Stands for the part that follows the last one."""


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
            IncompleteStreamError: there is no message.
            InvalidFieldError: the stream does not start with a header.
        """
        kind, first = self._part("before its header")
        if kind != "header":
            raise InvalidFieldError("part", f"the first message must be the header, got {kind}")
        return first.header

    def batch(self, batch: training_pb2.Batch, teachers: TeacherPool) -> ReceivedBatch:
        """Everything after the header, as one batch.

        Args:
            batch: of the header.
            teachers: which the header may name.

        Raises:
            IncompleteStreamError: the stream ended before everything had come.
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
            kind, request = self._part(f"after {index} of {batch.example_count} examples")
            if kind != "example":
                raise InvalidFieldError(
                    "part",
                    f"the header says {batch.example_count} examples, got {kind} after {index}",
                )
            examples.append(parser.parse(request.example, index))
            digest.update(_digest(request.example))
        needs_chunks = any(isinstance(example.targets, PromptRows) for example in examples)
        chunks = []
        for chunk in self._chunks(batch):
            if pulls or not needs_chunks:
                reason = "the header names a teacher" if pulls else "the examples name their tokens"
                raise InvalidFieldError("chunks[0]", f"no chunk may follow: {reason}")
            chunks.append(chunk)
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

    def _chunks(self, batch: training_pb2.Batch) -> Iterator[scoring_pb2.TopKChunk]:
        """The chunks that follow the examples, up to the end of the batch.

        Only the end part tells a whole stream from one whose connection broke, because gRPC ends
        the iterator for both. A batch that pulls is whole with its last example.
        """
        chunk_count = 0
        while True:
            received = f"after {batch.example_count} examples and {chunk_count} chunks"
            kind, request = self._part(received, may_end=batch.HasField("pull"))
            if kind == "chunk":
                yield request.chunk
                chunk_count += 1
                continue
            if kind not in ("end", ENDED):
                raise InvalidFieldError(
                    "part",
                    f"only chunks and the end follow the {batch.example_count} examples, "
                    f"got {kind}",
                )
            if kind == "end":
                self._check_end(request.end, chunk_count)
            return

    def _check_end(self, end: training_pb2.BatchEnd, chunk_count: int) -> None:
        if end.chunk_count != chunk_count:
            raise InvalidFieldError(
                "end.chunk_count",
                f"must be the number of chunks in the stream, which is {chunk_count}, "
                f"got {end.chunk_count}",
            )
        kind, _ = self._part("after its end part", may_end=True)
        if kind != ENDED:
            raise InvalidFieldError("part", f"nothing may follow the end, got {kind}")

    def _part(self, received: str, *, may_end: bool = False) -> tuple[str, Any]:
        """The next message and which part it holds.

        Args:
            received: what came before it, for the error.
            may_end: give `ENDED` where the stream has no further message.

        Raises:
            IncompleteStreamError: the stream ended, and may not.
            InvalidFieldError: a message without a part.
            LimitExceededError: more bytes than the service accepts.
        """
        request = next(self._requests, None)
        if request is None:
            if may_end:
                return ENDED, None
            raise IncompleteStreamError(
                "end",
                f"the stream ended {received}: the connection broke, or the part that closes the "
                "batch was not sent. Send all of it again",
            )
        self._bytes += request.ByteSize() + MESSAGE_OVERHEAD_BYTES
        if self._bytes > self._limits.max_request_bytes:
            raise LimitExceededError(
                "request", self._limits.max_request_bytes, self._bytes, unit="bytes"
            )
        return request.WhichOneof("part") or "no part", request


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
