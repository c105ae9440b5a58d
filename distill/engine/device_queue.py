"""One owner of the device; many streams take turns on it.

A *task* is an iterator whose every `next()` is one bounded piece of compute. One worker thread runs
the pieces of all tasks in turn, so a long request delays a short one by single pieces only. A task
whose consumer lags is parked, one that has nothing to do may rest, and a cancelled one is closed
before its next piece. A task that computes for several consumers gets a turn for each of them.
"""

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from distill.engine.result_stream import ResultStream
from distill.errors import DeadlineError, UnavailableError

ResultT = TypeVar("ResultT")


class _State(Enum):
    READY = auto()  # waits in the queue for its turn
    RUNNING = auto()  # the worker is inside its iterator
    PARKED = auto()  # enough results wait for the consumer
    RESTING = auto()  # the task asked for no turn for a while
    ENDED = auto()  # exhausted, failed or closed


@dataclass(frozen=True, kw_only=True)
class Rest:
    """A task yields it when it has nothing to do for now. A task that rests gets no turns.

    The rest ends with its time, by `DeviceStream.wake`, or when the task is cancelled, so that it
    can be closed.
    """

    seconds: float | None
    """Longest rest; None: until it is woken."""


class DeviceStream(ResultStream[ResultT]):
    """The results of one task."""

    def __init__(
        self,
        queue: "DeviceQueue",
        iterator: Iterator[ResultT | Rest | None],
        in_flight_limit: int,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(
            queue._lock, in_flight_limit=in_flight_limit, timeout_seconds=timeout_seconds
        )
        self._queue = queue
        self._iterator = iterator
        self._state = _State.READY
        self._woken = False
        self._due = 0.0  # when its next turn is, on the queue's clock of turns
        self.weight = 1
        """Turns that it gets for each one of another task. May be changed at any time."""
        self.pieces_run = 0

    def wake(self) -> None:
        """End the rest of the task. One that runs now skips the rest that it is about to take."""
        with self._changed:
            self._woken = True
            if self._state is _State.RESTING:
                self._queue._make_ready(self)

    def _after_read(self, _: ResultT) -> None:
        if self._state is _State.PARKED:
            self._queue._make_ready(self)

    def _after_cancel(self) -> None:
        if self._state in (_State.PARKED, _State.RESTING):
            # Only the worker may touch the iterator, so it gets a turn in order to be closed.
            self._queue._make_ready(self)


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
        # A heap: the task that is due earliest comes first, and of equals the one that got ready
        # first.
        self._ready: list[tuple[float, int, DeviceStream[Any]]] = []
        self._readied = 0
        self._turn = 0.0
        """When the last turn was due. After a turn, a task is due again 1 / weight later."""
        self._resting: dict[DeviceStream[Any], float] = {}  # and the end of its rest
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
        if timeout_seconds is not None and timeout_seconds <= 0:
            # An idle worker would start the piece before the wait below is over.
            raise DeadlineError("the deadline passed before the device was free")
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
        iterator: Iterator[ResultT | Rest | None],
        *,
        in_flight_limit: int = 4,
        timeout_seconds: float | None = None,
    ) -> DeviceStream[ResultT]:
        """Run an iterator piece by piece.

        Args:
            iterator: every `next()` is one piece. A piece that yields None has no result; one that
                yields a Rest did nothing. Only the worker thread touches it; a generator's
                `finally` runs there too.
            in_flight_limit: results that may wait for the consumer before the task is parked; at
                least 1.
            timeout_seconds: time for the whole stream, counted from now.

        Raises:
            UnavailableError: the queue is closing.
        """
        if threading.current_thread() is self._worker:
            raise RuntimeError("a piece must not wait for another piece")
        with self._lock:
            self.check_open()
            stream = DeviceStream(self, iterator, in_flight_limit, timeout_seconds)
            self._unfinished.add(stream)
            self._make_ready(stream)
        return stream

    def check_open(self) -> None:
        """Raises UnavailableError when the queue is closing: it accepts nothing more."""
        if self._closing:
            raise UnavailableError("the service is shutting down")

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
        self._resting.pop(stream, None)
        # A task that had nothing to do for a while is not owed the turns of that time.
        stream._due = max(stream._due, self._turn)
        self._readied += 1
        heapq.heappush(self._ready, (stream._due, self._readied, stream))
        self._work.notify()

    def _rest(self, stream: DeviceStream[Any], seconds: float | None) -> None:
        if stream._woken or stream._cancelled:
            self._make_ready(stream)
            return
        stream._state = _State.RESTING
        if seconds is not None:
            self._resting[stream] = time.monotonic() + seconds

    def _end_rests(self) -> float | None:
        """Queue the tasks that have rested enough; the seconds until the next one has."""
        now = time.monotonic()
        for stream, end in list(self._resting.items()):
            if end <= now:
                self._make_ready(stream)
        return min(self._resting.values()) - now if self._resting else None

    def _run_worker(self) -> None:
        while (stream := self._take_turn()) is not None:
            self._run_piece(stream)

    def _take_turn(self) -> DeviceStream[Any] | None:
        with self._lock:
            while True:
                until_next = self._end_rests()
                if self._ready:
                    break
                if self._closing and not self._unfinished:
                    return None
                self._work.wait(until_next)
            self._turn, _, stream = heapq.heappop(self._ready)
            stream._state = _State.RUNNING
            stream._woken = False
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
            if isinstance(result, Rest):
                self._rest(stream, result.seconds)
                return
            self.pieces_run += 1
            stream.pieces_run += 1
            stream._due += 1.0 / stream.weight
            if result is not None:
                stream._put(result)
            if stream._is_lagging:
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
            # A finished stream must not keep device arrays alive through its generator's frame.
            stream._iterator = iter(())
            self._unfinished.discard(stream)
            stream._finish(error)
