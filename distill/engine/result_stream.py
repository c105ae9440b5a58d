"""The consumer's half of a stream of results that another thread computes."""

import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Generic, TypeVar

from distill.errors import DeadlineError

ResultT = TypeVar("ResultT")


class ResultStream(Generic[ResultT]):
    """Results in order. Iterate it; leave its `with` block to cancel it.

    Iterating raises what the computation raised, CancelledError after `cancel`, and DeadlineError
    when the stream's time is over.
    """

    def __init__(
        self, lock: threading.RLock, *, in_flight_limit: int, timeout_seconds: float | None
    ) -> None:
        """
        Args:
            lock: the producer's, because the states of a stream and of its producer change
                together. Reentrant: a stream that cancels itself holds it already.
            in_flight_limit: results that may wait for the consumer before it counts as lagging; at
                least 1.
            timeout_seconds: time for the whole stream, counted from now.
        """
        if in_flight_limit < 1:
            raise ValueError(f"in_flight_limit must be at least 1, got {in_flight_limit}")
        self._in_flight_limit = in_flight_limit
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._changed = threading.Condition(lock)
        self._results: deque[ResultT] = deque()
        self._cancelled = False
        self._ended = False
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Compute nothing further. Returns at once; safe to repeat and from any thread."""
        with self._changed:
            self._cancelled = True
            self._results.clear()
            self._after_cancel()
            self._changed.notify_all()

    def __iter__(self) -> "ResultStream[ResultT]":
        return self

    def __next__(self) -> ResultT:
        with self._changed:
            while True:
                if self._cancelled:
                    raise CancelledError
                if self._results:
                    result = self._results.popleft()
                    self._after_read(result)
                    return result
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                if not self._changed.wait(self._remaining_seconds()) and self._is_late():
                    self.cancel()
                    raise DeadlineError("the deadline passed before the result was computed")

    def __enter__(self) -> "ResultStream[ResultT]":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    # What follows is the producer's, which holds the lock.

    @property
    def _is_lagging(self) -> bool:
        return len(self._results) >= self._in_flight_limit

    def _put(self, result: ResultT) -> None:
        if not self._cancelled:
            self._results.append(result)
            self._changed.notify_all()

    def _finish(self, error: BaseException | None) -> None:
        """Nothing follows the results that wait already, but this error."""
        self._ended = True
        self._error = error
        self._changed.notify_all()

    def _after_read(self, result: ResultT) -> None:
        """The consumer took a result."""

    def _after_cancel(self) -> None:
        """The consumer wants no more."""

    def _remaining_seconds(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
