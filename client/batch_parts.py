"""A batch as a stream: its header, its examples, the chunks that they refer to, its end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from google.protobuf.message import Message

from client.settings import Batch, Example, PulledScoring, batch_settings
from distill.v1 import scoring_pb2, training_pb2

Chunks = Iterable[scoring_pb2.TopKChunk]
Part = TypeVar("Part")


class BatchParts(Generic[Part]):
    """A batch as the parts of a stream.

    All of it is there before the call, so that a source that fails does so before anything is sent.
    The examples are copied, so that a retry sends what the first attempt sent; chunks are relayed
    as they are.
    """

    def __init__(
        self,
        part: Callable[..., Part],
        examples: Sequence[Example],
        settings: Batch | None,
        pull: PulledScoring | None,
        chunks: Chunks,
    ) -> None:
        """Args:
        part: the message of the stream.
        examples, settings, pull, chunks: as in `StudentRun.forward_backward`.
        """
        self.batch = _batch(settings, len(examples), pull)
        """For the header."""
        self._part = part
        self._examples = [part(example=example) for example in examples]
        self._chunks = tuple(chunks)

    def stream(self, header: Message) -> Iterator[Part]:
        """The parts, in the order in which they are sent."""
        yield self._part(header=header)
        yield from self._examples
        for chunk in self._chunks:
            yield self._part(chunk=chunk)
        if not self.batch.HasField("pull"):
            # To a service, a connection that broke looks like the end of a stream.
            yield self._part(end=training_pb2.BatchEnd(chunk_count=len(self._chunks)))


def _batch(settings: Batch | None, example_count: int, pull: PulledScoring | None) -> Batch:
    """A copy of the settings with what the request itself says; the caller's stay as they are."""
    batch = Batch()
    batch.CopyFrom(batch_settings() if settings is None else settings)
    batch.example_count = example_count
    batch.ClearField("pull")
    if pull is not None:
        batch.pull.CopyFrom(pull)
    return batch
