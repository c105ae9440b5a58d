"""One owner of the device; many streams take turns on it.

A *task* is an iterator whose every `next()` is one bounded piece of compute. One worker thread runs
the pieces of all tasks in turn, so a long request delays a short one by single pieces only. A task
whose consumer lags is parked, and a cancelled one is closed before its next piece.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from enum import Enum, auto
from types import TracebackType
from typing import Any, Generic, TypeVar

from distill.errors import DeadlineError, UnavailableError

ResultT = TypeVar("ResultT")


class _State(Enum):
    READY = auto()  # waits in the queue for its turn
    RUNNING = auto()  # the worker is inside its iterator
    PARKED = auto()  # enough results wait for the consumer
    ENDED = auto()  # exhausted, failed or closed


class DeviceStream(Generic[ResultT]):
    """The results of one task, in order. Iterate it; leave its `with` block to cancel it.

    Iterating raises what the task raised, CancelledError after `cancel`, and DeadlineError when
    the stream's time is over.
    """

    def __init__(
        self,
        queue: "DeviceQueue",
        iterator: Iterator[ResultT | None],
        window: int,
        timeout_seconds: float | None,
    ) -> None:
        self._queue = queue
        self._iterator = iterator
        self._window = window
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        # The queue's lock: a stream's state and the queue's change together.
        self._changed = threading.Condition(queue._lock)
        self._results: deque[ResultT] = deque()
        self._state = _State.READY
        self._cancelled = False
        self._error: BaseException | None = None
        self.pieces_run = 0

    def cancel(self) -> None:
        """Run no further piece. Returns at once; safe to repeat and from any thread."""
        with self._changed:
            self._cancelled = True
            self._results.clear()
            if self._state is _State.PARKED:
                # Only the worker may touch the iterator, so it gets a turn in order to be closed.
                self._queue._make_ready(self)
            self._changed.notify_all()

    def __iter__(self) -> "DeviceStream[ResultT]":
        return self

    def __next__(self) -> ResultT:
        with self._changed:
            while True:
                if self._cancelled:
                    raise CancelledError
                if self._results:
                    result = self._results.popleft()
                    if self._state is _State.PARKED:
                        self._queue._make_ready(self)
                    return result
                if self._state is _State.ENDED:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                if not self._changed.wait(self._remaining_seconds()) and self._is_late():
                    self.cancel()
                    raise DeadlineError("the deadline passed before the result was computed")

    def __enter__(self) -> "DeviceStream[ResultT]":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def _remaining_seconds(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


class _SinglePiece(Iterator[None], Generic[ResultT]):
    """A task of one piece whose result goes to a future."""

    def __init__(self, function: Callable[[], ResultT], future: "Future[ResultT]") -> None:
        self._function = function
        self._future = future
        self._ran = False

    def __next__(self) -> None:
        # A future that was cancelled while it waited must not run.
        if self._ran or not self._future.set_running_or_notify_cancel():
            raise StopIteration
        self._ran = True
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # belongs to whoever waits for the future
            self._future.set_exception(error)

    def close(self) -> None:
        self._future.cancel()


class DeviceQueue:
    """Runs all compute of a process on one worker thread, in turns."""

    def __init__(self) -> None:
        # Reentrant: a stream that cancels itself holds the lock already.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._ready: deque[DeviceStream[Any]] = deque()
        self._unfinished: set[DeviceStream[Any]] = set()
        self._closing = False
        self.pieces_run = 0
        self._worker = threading.Thread(target=self._run_worker, name="device-queue", daemon=True)
        self._worker.start()

    def run(
        self, function: Callable[[], ResultT], *, timeout_seconds: float | None = None
    ) -> ResultT:
        """Run one piece and return its result.

        Args:
            function: the piece. Whatever it raises is raised here.
            timeout_seconds: longest wait for the piece to *start*. Once started it is waited for,
                so that the caller always knows whether it happened.

        Raises:
            DeadlineError: the piece did not start in time, and never will.
            UnavailableError: the queue is closing.
        """
        future = self.submit(function)
        wait([future], timeout_seconds)
        # `cancel` fails once the piece has started: it decides between the two atomically.
        if not future.done() and future.cancel():
            raise DeadlineError("the deadline passed before the device was free")
        try:
            return future.result()
        except CancelledError:
            raise UnavailableError("the service is shutting down") from None

    def submit(self, function: Callable[[], ResultT]) -> "Future[ResultT]":
        """Queue one piece. `future.cancel()` keeps it from starting.

        Raises:
            UnavailableError: the queue is closing.
        """
        future: Future[ResultT] = Future()
        self.stream(_SinglePiece(function, future))
        return future

    def stream(
        self,
        iterator: Iterator[ResultT | None],
        *,
        window: int = 4,
        timeout_seconds: float | None = None,
    ) -> DeviceStream[ResultT]:
        """Run an iterator piece by piece.

        Args:
            iterator: every `next()` is one piece. A piece that yields None has no result. Only the
                worker thread touches it; a generator's `finally` runs there too.
            window: results that may wait for the consumer before the task is parked; at least 1.
            timeout_seconds: time for the whole stream, counted from now.

        Raises:
            UnavailableError: the queue is closing.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if threading.current_thread() is self._worker:
            raise RuntimeError("a piece must not wait for another piece")
        with self._lock:
            if self._closing:
                raise UnavailableError("the service is shutting down")
            stream = DeviceStream(self, iterator, window, timeout_seconds)
            self._unfinished.add(stream)
            self._make_ready(stream)
        return stream

    def close(self, *, grace_seconds: float | None = None) -> None:
        """Refuse new work, finish what was accepted, and end the worker thread.

        Args:
            grace_seconds: after this time the remaining tasks are cancelled. None: no limit.
        """
        with self._lock:
            self._closing = True
            self._work.notify_all()
        self._worker.join(grace_seconds)
        if self._worker.is_alive():
            with self._lock:
                for stream in list(self._unfinished):
                    stream.cancel()
            # The piece that is running cannot be interrupted, but it is bounded.
            self._worker.join()

    def _make_ready(self, stream: DeviceStream[Any]) -> None:
        stream._state = _State.READY
        self._ready.append(stream)
        self._work.notify()

    def _run_worker(self) -> None:
        while (stream := self._take_turn()) is not None:
            self._run_piece(stream)

    def _take_turn(self) -> DeviceStream[Any] | None:
        with self._lock:
            while not self._ready:
                if self._closing and not self._unfinished:
                    return None
                self._work.wait()
            stream = self._ready.popleft()
            stream._state = _State.RUNNING
            return stream

    def _run_piece(self, stream: DeviceStream[Any]) -> None:
        if stream._cancelled:
            self._end(stream, self._closed(stream))
            return
        try:
            result = next(stream._iterator)
        except StopIteration:
            self._end(stream, None)
            return
        except BaseException as error:  # the worker outlives every task
            self._end(stream, error)
            return
        with self._lock:
            self.pieces_run += 1
            stream.pieces_run += 1
            if result is not None and not stream._cancelled:
                stream._results.append(result)
                stream._changed.notify_all()
            if len(stream._results) >= stream._window:
                stream._state = _State.PARKED
            else:
                self._make_ready(stream)

    @staticmethod
    def _closed(stream: DeviceStream[Any]) -> BaseException | None:
        """Close a generator and return what its `finally` raised."""
        close = getattr(stream._iterator, "close", None)
        if close is None:
            return None
        try:
            close()
        except BaseException as error:  # the worker outlives every task
            return error
        return None

    def _end(self, stream: DeviceStream[Any], error: BaseException | None) -> None:
        with self._lock:
            stream._state = _State.ENDED
            stream._error = error
            # A finished stream must not keep device arrays alive through its generator's frame.
            stream._iterator = iter(())
            self._unfinished.discard(stream)
            stream._changed.notify_all()
