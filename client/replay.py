"""A stream that can be sent again."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import grpc

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Replay(Generic[Item]):
    """Remembers what it yielded, so that a retried call sends the same items in the same order.

    An error of the source is kept and raised to the caller of `guard`: gRPC itself drops what its
    request iterator raises and reports a bare CANCELLED or UNKNOWN.
    """

    def __init__(self, source: Iterable[Item]) -> None:
        self._source = iter(source)
        self._sent: list[Item] = []
        self._source_error: Exception | None = None

    def __iter__(self) -> Iterator[Item]:
        index = 0
        while True:
            if index == len(self._sent):
                try:
                    item = next(self._source)
                except StopIteration:
                    return
                except Exception as error:
                    self._source_error = error
                    raise
                self._sent.append(item)
            yield self._sent[index]
            index += 1

    def guard(self, call: Callable[[], Answer]) -> Answer:
        """Run the call that sends the items; raises the source's own error if that ended it."""
        try:
            return call()
        except grpc.RpcError:
            if self._source_error is not None:
                raise self._source_error from None
            raise
