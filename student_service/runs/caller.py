"""The caller of an RPC without gRPC: its deadline, whether it still waits, and compute for it.

`Caller` runs reads, which stop when their caller leaves. A mutation that has begun goes on without
its caller, so it needs no more of it than `Remaining`.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from distill.engine.device_queue import DeviceQueue
from distill.errors import CallEndedError, UnavailableError

ResultT = TypeVar("ResultT")

Remaining: TypeAlias = Callable[[], float | None]
"""Seconds that are left of the caller's deadline; None where it set none.

Work may wait for the device within that time. After the deadline nothing of the request starts any
more, and the caller can rely on that.
"""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who waits for the answer to a call."""

    remaining_seconds: Remaining
    """What is left of its deadline."""

    is_active: Callable[[], bool]
    """Whether it still waits."""

    on_end: Callable[[Callable[[], None]], bool]
    """Register a function that runs when the call ends, also by its deadline. False: the call has
    ended already, and the function will not run."""

    def run(self, queue: DeviceQueue, function: Callable[[], ResultT]) -> ResultT:
        """Run one piece on the device, unless the caller leaves before its turn.

        Raises: as `finish`.
        """

        def piece() -> Iterator[ResultT]:
            yield function()

        result: ResultT = self.finish(queue, piece())
        return result

    def finish(self, queue: DeviceQueue, pieces: Iterator[Any]) -> Any:
        """Run pieces on the device while the caller waits, and return the last one's result.

        Raises:
            CallEndedError: the caller left.
            DeadlineError: its deadline passed.
            UnavailableError: the service is shutting down.
        """
        with queue.stream(pieces, timeout_seconds=self.remaining_seconds()) as stream:
            if not self.on_end(stream.cancel):
                raise CallEndedError("the call has ended")
            try:
                return next(stream)
            except CancelledError:
                if not self.is_active():
                    raise CallEndedError("the call ended before its result was there") from None
                # The queue cancels what is left at the end of a drain.
                raise UnavailableError("the service is shutting down") from None
