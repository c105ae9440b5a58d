"""The chunks of one scoring request, and its jobs that are still to be computed."""

import threading
from collections.abc import Callable

from distill.engine.call_plan import WaitingJobs
from distill.engine.result_stream import ResultStream
from distill.rows import Rows


class ScoreStream(ResultStream[Rows]):
    """The chunks of one request."""

    def __init__(
        self,
        lock: threading.RLock,
        waiting: WaitingJobs,
        *,
        in_flight_limit: int,
        timeout_seconds: float | None,
        wake: Callable[[], None],
    ) -> None:
        """
        Args:
            lock: the scheduler's.
            waiting: the jobs of the request.
            in_flight_limit: as in `ResultStream`.
            timeout_seconds: as in `ResultStream`.
            wake: tells the scheduler that the stream may have changed what it should do next.
        """
        super().__init__(lock, in_flight_limit=in_flight_limit, timeout_seconds=timeout_seconds)
        self._wake = wake
        self._waiting = waiting
        self._jobs_in_call = 0
        """Its unfinished jobs in the one call that computes for it."""
        self._unread_bytes = 0
        """Of the chunks that wait for the reader."""

    @property
    def _is_over(self) -> bool:
        """Whether it gets no further chunk."""
        return self._ended or self._cancelled

    @property
    def _can_join_call(self) -> bool:
        """Whether the next call may take jobs of it."""
        return bool(self._waiting.portions) and not self._jobs_in_call and not self._is_lagging

    def _put(self, result: Rows) -> None:
        self._unread_bytes += result.byte_count
        super()._put(result)

    def _finish_job(self) -> None:
        """A call has delivered the last row of one of its jobs."""
        self._jobs_in_call -= 1
        if not self._jobs_in_call and not self._waiting.portions and not self._is_over:
            self._finish(None)

    def _after_read(self, result: Rows) -> None:
        self._unread_bytes -= result.byte_count
        if len(self._results) == self._in_flight_limit - 1:
            self._wake()

    def _after_cancel(self) -> None:
        if not self._ended:
            self._wake()
