"""The other end of a call, as those see it who know no gRPC; and compute that ends with it.

Only for what changes nothing. A mutation that has begun goes on when its caller leaves.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

from distill.engine.device_queue import DeviceQueue
from distill.errors import CallEndedError, UnavailableError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whoever waits for the answer to a call."""

    remaining_seconds: Callable[[], float | None]
    """What is left of its deadline; None where it set none."""

    is_active: Callable[[], bool]
    """Whether it still waits."""

    on_end: Callable[[Callable[[], None]], bool]
    """Have something called when the call ends, also by its deadline; False: it has ended already,
    and nothing will be called."""

    def run(self, queue: DeviceQueue, function: Callable[[], ResultT]) -> ResultT:
        """Run one piece on the device, unless the caller leaves before its turn.

        Raises: as `finish`.
        """

        def piece() -> Iterator[ResultT]:
            yield function()

        result: ResultT = self.finish(queue, piece())
        return result

    def finish(self, queue: DeviceQueue, pieces: Iterator[Any]) -> Any:
        """Run pieces on the device for as long as the caller waits; the last one's result.

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
                # By the queue, at the end of a drain.
                raise UnavailableError("the service is shutting down") from None
