"""The messages of a request as they arrive: waited for, bounded, counted and parsed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from google.protobuf.message import DecodeError

from distill.errors import DeadlineError, InvalidFieldError, LimitExceededError
from distill.limits import MAX_MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES
from distill.rpc.byte_budget import HeldMemory

Arrival = Future[bytes | None]
"""A message on its way; None: there is no further one."""


class Receiver:
    """Waits for messages, but not for ever: a silent caller would hold its slot and a thread.

    gRPC's iterator of a request waits without a limit, so threads of this class wait for it. Such a
    thread is free again when the call has ended.
    """

    def __init__(self, max_calls: int, max_silent_seconds: float) -> None:
        """Args:
        max_calls: calls that may wait at a time.
        max_silent_seconds: longest wait for a message.
        """
        self._max_silent_seconds = max_silent_seconds
        self._threads = ThreadPoolExecutor(max_calls, thread_name_prefix="receive")

    def start(self, wire: Iterator[bytes]) -> Arrival:
        """Begin to wait for the next message."""
        return self._threads.submit(next, wire, None)

    def wait(self, arrival: Arrival) -> bytes | None:
        """The message; None after the last.

        Raises:
            DeadlineError: it did not come in time.
        """
        try:
            return arrival.result(self._max_silent_seconds)
        except TimeoutError:
            arrival.cancel()  # matters only while no thread has begun with it
            raise DeadlineError(
                f"request: no message came for {self._max_silent_seconds:g} s; start the call when "
                "its messages are at hand, and send them without such a pause"
            ) from None

    def close(self) -> None:
        """End the threads, each when its call has ended."""
        self._threads.shutdown(wait=False)


class RequestMessages(Iterator[Any]):
    """The messages of one call. The next one arrives while the handler works on one."""

    def __init__(
        self,
        wire: Iterator[bytes],
        *,
        receiver: Receiver,
        memory: HeldMemory,
        max_request_bytes: int,
        parse: Callable[[bytes], Any] | None,
    ) -> None:
        """Args:
        wire: the messages as bytes.
        receiver: waits for them.
        memory: of the call; holds what has arrived.
        max_request_bytes: most bytes of all of them, counted as in `RequestLimits`.
        parse: makes a message of bytes. None: bytes are what the handler wants.
        """
        self._wire = wire
        self._receiver = receiver
        self._memory = memory
        self._max_request_bytes = max_request_bytes
        self._parse = parse
        self._byte_count = 0
        self._message_count = 0
        self._arrival = receiver.start(wire)

    def __next__(self) -> Any:
        """The next message.

        Raises:
            DeadlineError: none came for too long.
            InvalidFieldError: it is no message of the method's type.
            LimitExceededError: it, or the request with it, is larger than the service accepts.
            HeldBytesError: there is no room for it now.
        """
        content = self._receiver.wait(self._arrival)
        if content is None:
            raise StopIteration
        self._count(content)
        self._arrival = self._receiver.start(self._wire)
        return self._parsed(content)

    def only(self) -> Any:
        """The message of a method that takes one. Raises as `__next__`, also when none came."""
        content = self._receiver.wait(self._arrival)
        if content is None:
            raise InvalidFieldError("request", "the call ended before its message")
        self._count(content)
        return self._parsed(content)

    def _count(self, content: bytes) -> None:
        self._message_count += 1
        if len(content) > MAX_MESSAGE_BYTES:
            raise LimitExceededError(
                "request", MAX_MESSAGE_BYTES, len(content), unit="bytes a message"
            )
        counted = len(content) + MESSAGE_OVERHEAD_BYTES
        self._byte_count += counted
        if self._byte_count > self._max_request_bytes:
            raise LimitExceededError(
                "request", self._max_request_bytes, self._byte_count, unit="bytes"
            )
        self._memory.add(counted)

    def _parsed(self, content: bytes) -> Any:
        if self._parse is None:
            return content
        try:
            return self._parse(content)
        except DecodeError:
            raise InvalidFieldError(
                "request",
                f"message {self._message_count} of the call is malformed: it is no message of the "
                "method's type",
            ) from None
