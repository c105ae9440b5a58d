"""Merges the scoring of concurrent streams into calls of the scorer.

The scheduler is one task on the device queue, whatever the number of streams. Each of its pieces is
one piece of a call. The task has a turn for each stream that reads, and training and sampling take
their turns between them. It starts with the first stream and ends with the last. While there is
nothing to compute it rests, which costs no turn.

A call runs until the last of its jobs is delivered. Each stream gets its chunks as they are
computed, and ends with its own last row.

A stream whose reader lags gets no further jobs computed. A call that it shares with others goes on
beyond its in-flight limit, and keeps its chunks for it. When the kept bytes reach a bound, the call
goes on without the stream, and the rest of the stream's jobs waits for a later call. A call whose
streams all lag stands still while other calls run.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from distill.engine.arrivals import ArrivalEstimator
from distill.engine.call_plan import CallPlanner, same_weights
from distill.engine.device_queue import DeviceQueue, DeviceStream, Rest
from distill.engine.score_stream import ScoreStream
from distill.engine.scoring_call import JobScorer, ScoringCall
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import ModelWeights

_MOST_UNREAD_BYTES = 4 << 20
"""Most bytes of chunks that a shared call keeps for a stream that lags, give or take a chunk."""


class ScoringScheduler:
    """Scores for many streams at once, fairly. `score` may be called from any thread."""

    def __init__(
        self,
        queue: DeviceQueue,
        scorer: JobScorer,
        *,
        token_budget: int,
        shares_prefixes: bool = True,
        join_wait_seconds: float = 0.003,
        most_unread_bytes: int = _MOST_UNREAD_BYTES,
    ) -> None:
        """
        Args:
            queue: runs all compute.
            scorer: computes.
            token_budget: most tokens of one call; only a longer prompt, alone, exceeds it.
            shares_prefixes: whether the scorer computes a prefix that prompts share once.
            join_wait_seconds: longest time that a call with room left waits for streams that are
                likely to come. The scheduler rests meanwhile, so other tasks get the device.
            most_unread_bytes: bytes of unread chunks from which on a shared call computes nothing
                further for a stream that lags.
        """
        self._queue = queue
        self._scorer = scorer
        self._planner = CallPlanner(token_budget, shares_prefixes=shares_prefixes)
        self._arrivals = ArrivalEstimator(join_wait_seconds)
        self._most_unread_bytes = most_unread_bytes
        # Taken before the queue's own, and never while a piece is computed. Reentrant: a stream
        # that cancels itself holds it already.
        self._lock = threading.RLock()
        self._streams: list[ScoreStream] = []
        self._calls: list[ScoringCall] = []  # oldest first
        self._task: DeviceStream[None] | None = None
        self.call_count = 0
        """Calls of the scorer so far."""

    def score(
        self,
        jobs: Sequence[ScoreJob],
        weights: ModelWeights,
        *,
        in_flight_limit: int = 4,
        timeout_seconds: float | None = None,
    ) -> ScoreStream:
        """Score prompts.

        Args:
            jobs: the prompts. Those that share a prefix are best given one after the other.
            weights: what to compute under. Streams under the same arrays share calls.
            in_flight_limit: chunks that may wait for the consumer before no further jobs are
                computed.
            timeout_seconds: time for the whole stream, counted from now.

        Returns:
            The chunks: those of a job in order, those of the jobs as they are computed.

        Raises:
            UnavailableError: the queue is closing.
        """
        # Copies: a call finds the stream of a job by the job's identity.
        own_jobs = [replace(job) for job in jobs]
        with self._lock:
            self._queue.check_open()
            stream = ScoreStream(
                self._lock,
                self._planner.admit(own_jobs, weights),
                in_flight_limit=in_flight_limit,
                timeout_seconds=timeout_seconds,
                wake=self._wake,
            )
            if not own_jobs:
                stream._finish(None)
                return stream
            if self._task is None:
                self._task = self._queue.stream(_Task(self))
            self._streams.append(stream)
            self._arrivals.stream_opened(weights, self._reading_count(weights))
            self._wake()
        return stream

    def _wake(self) -> None:
        if self._task is not None:
            self._task.wake()

    def _open_streams(self) -> list[ScoreStream]:
        """The streams that are not over; those that are, are forgotten."""
        self._streams = [stream for stream in self._streams if not stream._is_over]
        return self._streams

    def _reading_count(self, weights: ModelWeights) -> int:
        """Open streams under these weights that keep up."""
        return sum(
            same_weights(stream._waiting.weights, weights) and not stream._is_lagging
            for stream in self._open_streams()
        )

    # What follows runs on the device queue's worker.

    def _run_piece(self) -> Rest | None:
        """Run one piece of a call, or say how long to rest.

        Raises:
            StopIteration: no stream is open.
        """
        with self._lock:
            unwanted = [call for call in self._calls if not call.is_wanted]
            self._calls = [call for call in self._calls if call.is_wanted]
            chosen = self._choose()
            if chosen is None:
                self._task = None
            elif self._task is not None:
                # As fair to other tasks as if each stream were one.
                reading = [stream for stream in self._open_streams() if not stream._is_lagging]
                self._task.weight = max(1, len(reading))
        for call in unwanted:
            call.close()
        if chosen is None:
            raise StopIteration
        if isinstance(chosen, Rest):
            return chosen
        self._advance(chosen)
        return None

    def _choose(self) -> ScoringCall | Rest | None:
        """The call whose piece comes next, or a rest if none can run; None: no stream is open."""
        for call in self._calls:
            if call.has_reader:
                return call
        open_streams = self._open_streams()
        ready = [stream for stream in open_streams if stream._can_join_call]
        if not ready:
            return Rest(seconds=None) if open_streams else None
        wait_seconds = self._wait_seconds(ready)
        return Rest(seconds=wait_seconds) if wait_seconds > 0 else self._start_call(ready)

    def _wait_seconds(self, ready: list[ScoreStream]) -> float:
        """How long the next call should wait for further streams to join it."""
        weights = ready[0]._waiting.weights
        if not all(same_weights(stream._waiting.weights, weights) for stream in ready):
            return 0.0  # two calls follow, and streams may join the second during the first
        if self._planner.fills_a_call([stream._waiting for stream in ready]):
            return 0.0
        return self._arrivals.wait_seconds(weights, len(ready), time.monotonic())

    def _start_call(self, ready: list[ScoreStream]) -> ScoringCall:
        stream_of = {stream._waiting: stream for stream in ready}
        taken = self._planner.take_call(list(stream_of))
        weights = taken[0][0].weights
        call = ScoringCall(
            [(stream_of[waiting], jobs) for waiting, jobs in taken], weights, self._scorer
        )
        self._calls.append(call)
        self.call_count += 1
        self._arrivals.call_started(weights, self._reading_count(weights))
        return call

    def _advance(self, call: ScoringCall) -> None:
        """Compute a piece of a call and deliver its result."""
        with self._lock:
            self._withdraw_laggards(call)
        result = None
        error = None
        try:
            result = call.compute_piece()
        except BaseException as raised:  # belongs to the streams of the call
            error = raised
        with self._lock:
            if error is not None:
                call.fail(error)
            elif result is not None:
                call.deliver(*result)
            is_over = not call.streams
            if is_over:
                self._calls.remove(call)
        if is_over:
            call.close()

    def _withdraw_laggards(self, call: ScoringCall) -> None:
        """Let a call go on without the streams for which it keeps too much."""
        for stream in call.streams:
            if stream._is_lagging and stream._unread_bytes >= self._most_unread_bytes:
                self._planner.put_back(stream._waiting, call.withdraw(stream))

    def _abandon(self, error: BaseException | None) -> None:
        """Compute nothing further, and end all streams.

        Args:
            error: what broke the task; None: the time to drain the queue is over.
        """
        with self._lock:
            calls, self._calls = self._calls, []
            self._task = None
            for stream in self._open_streams():
                if error is None:
                    stream.cancel()
                else:
                    stream._finish(error)
            self._streams = []
        for call in calls:
            call.close()


class _Task(Iterator[Rest | None]):
    """The scheduler as a task of the device queue.

    No generator: the queue may close a task that has not started, and closing a generator that has
    not started runs none of its code.
    """

    def __init__(self, scheduler: ScoringScheduler) -> None:
        self._scheduler = scheduler

    def __next__(self) -> Rest | None:
        try:
            return self._scheduler._run_piece()
        except StopIteration:
            raise
        except BaseException as error:  # without it, the streams would wait for ever
            self._scheduler._abandon(error)
            raise

    def close(self) -> None:
        self._scheduler._abandon(None)
