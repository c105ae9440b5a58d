"""Reads a client stream of header, examples and chunks into a checked batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distill.errors import IncompleteStreamError, InvalidFieldError, LimitExceededError
from distill.limits import MESSAGE_OVERHEAD_BYTES, RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.rows import Rows
from distill.v1 import scoring_pb2, student_service_pb2, training_pb2
from student_service.edge.chunks import assemble_prompts
from student_service.edge.digests import value_digest
from student_service.edge.examples import CheckedExample, ExampleParser, PromptRows
from student_service.edge.pulled_scoring import (
    check_pulled_rows,
    check_pulled_support,
    understood_scoring,
)
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
    """A batch as it was sent: everything in it is checked."""

    loss: LossSettings
    """What is minimised."""

    batch: training_pb2.Batch
    """The header, for its result options and the teacher."""

    examples: tuple[CheckedExample, ...]
    """As many as the header said."""

    prompts: Mapping[int, Rows]
    """The rows that the client relayed, by prompt; empty when a teacher has them or the examples
    need none."""

    digest: bytes
    """Of what the batch means: everything but the header's mutation."""


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
            teachers.check_name(batch.pull.teacher, "header.batch.pull.teacher")
            check_pulled_support(batch.pull.scoring, OBJECTIVES[loss.objective])
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
        needs_chunks = any(isinstance(example.targets, PromptRows) for example in examples)
        chunks = []
        for chunk in self._chunks(batch):
            if pulls or not needs_chunks:
                reason = "the header names a teacher" if pulls else "the examples name their tokens"
                raise InvalidFieldError("chunks[0]", f"no chunk may follow: {reason}")
            chunks.append(chunk)
        if pulls:
            check_pulled_rows(examples, batch.pull.scoring)
        prompts = assemble_prompts(
            chunks, self._limits, self._vocab_size, OBJECTIVES[loss.objective]
        )
        return ReceivedBatch(
            loss=loss,
            batch=batch,
            examples=tuple(examples),
            prompts=prompts,
            digest=_digest(loss, batch, examples, prompts),
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


def _digest(
    loss: LossSettings,
    batch: training_pb2.Batch,
    examples: Sequence[CheckedExample],
    prompts: Mapping[int, Rows],
) -> bytes:
    """Digest of a batch. When the client repeats it, its chunks may interleave in another order or
    be cut elsewhere; what they say of each prompt is the same."""
    options = {name: getattr(batch, name) for name in ("return_log_probs", "return_row_losses")}
    pull = None
    if batch.HasField("pull"):
        pull = (batch.pull.teacher, understood_scoring(batch.pull.scoring))
    return value_digest((loss, options, examples, prompts, pull))
