"""Merges the scoring of concurrent streams into calls of the scorer.

All of it is one task on the device queue: each of its pieces is one piece of a call, so training
and sampling take their turns between them, one for a turn of each stream. The task starts with the
first stream and ends with the last; meanwhile, when there is nothing to compute, it rests and costs
no turn.

A call runs until the last of its jobs is delivered. Each stream gets its chunks as they are
computed, and ends with its own last row. A stream whose reader lags gets no further jobs computed.
A call that it shares with others goes on without regard to its window, until so many bytes are kept
for it that the rest of its jobs goes back to where they wait. A call that holds nothing but jobs of
lagging streams stands still while others run.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from distill.engine.arrivals import Company
from distill.engine.call_plan import CallPlanner, WaitingJobs, same_weights
from distill.engine.device_queue import DeviceQueue, DeviceStream, Rest
from distill.engine.result_stream import ResultStream
from distill.engine.scoring_jobs import IsWanted, ScoreJob
from distill.engine.weights import ModelWeights
from distill.rows import Rows

KEPT_BYTES = 4 << 20
"""Most bytes of chunks that are kept for a stream that lags, give or take a chunk."""


class JobScorer(Protocol):
    """What the scheduler needs of a scorer."""

    def score_jobs(
        self, jobs: Sequence[ScoreJob], weights: ModelWeights, is_wanted: IsWanted
    ) -> Iterator[tuple[ScoreJob, Rows] | None]:
        """Score jobs of any kinds together.

        Every `next()` is one bounded piece of compute; None is one without a result. The jobs in
        the results are the very objects that were given. The chunks of a job come in order and
        tile [score_from, T) exactly once, or end where the job is not wanted any more, which is
        asked before each piece.
        """


class ScoreStream(ResultStream[Rows]):
    """The chunks of one request."""

    def __init__(
        self,
        scheduler: "ScoringScheduler",
        waiting: WaitingJobs,
        window: int,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(scheduler._lock, window=window, timeout_seconds=timeout_seconds)
        self._scheduler = scheduler
        self._waiting = waiting
        self._jobs_in_call = 0
        self._kept_bytes = 0

    @property
    def _is_waiting(self) -> bool:
        """Whether the next call may take jobs of it."""
        return bool(self._waiting.portions) and not self._jobs_in_call and not self._is_lagging

    @property
    def _keeps_too_much(self) -> bool:
        """Whether no call may go on computing for it."""
        return self._is_lagging and self._kept_bytes >= self._scheduler._most_kept_bytes

    def _put(self, result: Rows) -> None:
        self._kept_bytes += result.byte_count
        super()._put(result)

    def _after_read(self, result: Rows) -> None:
        self._kept_bytes -= result.byte_count
        if len(self._results) == self._window - 1:
            self._scheduler._wake()

    def _after_cancel(self) -> None:
        self._scheduler._drop(self)


@dataclass(eq=False, kw_only=True)
class _Call:
    """One call of the scorer, from its plan to its last chunk."""

    jobs: list[ScoreJob]
    """In the order in which the scorer gets them."""

    weights: ModelWeights
    """What they run under."""

    streams: dict[int, ScoreStream]
    """By the id of a job that is not finished: who gets its chunks."""

    next_rows: dict[int, int] = field(default_factory=dict)
    """By the id of a job of which there are chunks already: its first row that is not there."""

    pieces: Iterator[tuple[ScoreJob, Rows] | None] | None = None
    """The scorer's; None before the first."""

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it."""
        return any(not stream._cancelled for stream in self.streams.values())

    @property
    def has_reader(self) -> bool:
        """Whether anybody who keeps up waits for it."""
        return any(
            not stream._cancelled and not stream._is_lagging for stream in self.streams.values()
        )

    def wants(self, job: ScoreJob) -> bool:
        """Whether anybody waits for further rows of a job. Needs no lock."""
        stream = self.streams.get(id(job))
        return stream is not None and not stream._cancelled

    def close(self) -> None:
        """Free what the scorer holds for it."""
        close = getattr(self.pieces, "close", None)
        if close is not None:
            with suppress(Exception):  # nobody is left to hear of it
                close()


class _Task(Iterator[Rest | None]):
    """The scheduler as a task. No generator: closing one that has not started runs nothing."""

    def __init__(self, scheduler: "ScoringScheduler") -> None:
        self._scheduler = scheduler

    def __next__(self) -> Rest | None:
        try:
            return self._scheduler._run_piece()
        except StopIteration:
            raise
        except BaseException as error:  # else its streams would wait for ever
            self._scheduler._abandon(error)
            raise

    def close(self) -> None:
        self._scheduler._abandon(None)


class ScoringScheduler:
    """Scores for many streams at once, fairly. `score` may be called from any thread."""

    def __init__(
        self,
        queue: DeviceQueue,
        scorer: JobScorer,
        *,
        token_budget: int,
        shares_prefixes: bool = True,
        patience_seconds: float = 0.003,
        most_kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """
        Args:
            queue: runs all compute.
            scorer: computes.
            token_budget: most tokens of one call; only a longer prompt, alone, exceeds it.
            shares_prefixes: whether the scorer computes a prefix that prompts share once.
            patience_seconds: longest time that a call with room left waits for streams that are
                likely to come, while the device has nothing else to do.
            most_kept_bytes: bytes of chunks beyond its window that a shared call may keep for a
                stream that lags.
        """
        self._queue = queue
        self._scorer = scorer
        self._planner = CallPlanner(token_budget, shares_prefixes=shares_prefixes)
        self._company = Company(patience_seconds)
        self._most_kept_bytes = most_kept_bytes
        # Taken before the queue's own, and never while a piece is computed. Reentrant: a stream
        # that cancels itself holds it already.
        self._lock = threading.RLock()
        self._streams: list[ScoreStream] = []  # that have jobs waiting or in a call
        self._calls: list[_Call] = []  # oldest first
        self._task: DeviceStream[None] | None = None
        self.call_count = 0
        """Calls of the scorer so far."""

    def score(
        self,
        jobs: Sequence[ScoreJob],
        weights: ModelWeights,
        *,
        window: int = 4,
        timeout_seconds: float | None = None,
    ) -> ScoreStream:
        """Score prompts.

        Args:
            jobs: the prompts. Those that share a prefix are best given one after the other.
            weights: what to compute under. Streams under the same arrays share calls.
            window: chunks that may wait for the consumer before no further jobs are computed.
            timeout_seconds: time for the whole stream, counted from now.

        Returns:
            The chunks: those of a job in order, those of the jobs as they are computed.

        Raises:
            UnavailableError: the queue is closing.
        """
        # Copies, so that the identity of a job names its stream.
        own_jobs = [replace(job) for job in jobs]
        with self._lock:
            self._queue.check_open()
            waiting = self._planner.admit(own_jobs, weights)
            stream = ScoreStream(self, waiting, window, timeout_seconds)
            if not own_jobs:
                stream._finish(None)
                return stream
            if self._task is None:
                self._task = self._queue.stream(_Task(self))
            else:
                self._task.wake()
            self._streams.append(stream)
            self._company.joined(weights, self._reading_beside(weights))
        return stream

    def _reading_beside(self, weights: ModelWeights) -> int:
        """Streams under these weights that keep up."""
        return sum(
            same_weights(stream._waiting.weights, weights) and not stream._is_lagging
            for stream in self._streams
        )

    def _wake(self) -> None:
        if self._task is not None:
            self._task.wake()

    def _drop(self, stream: ScoreStream) -> None:
        """A stream was cancelled: what is not computed yet will not be."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._wake()

    # What follows runs on the device queue's worker.

    def _run_piece(self) -> Rest | None:
        with self._lock:
            unwanted = [call for call in self._calls if not call.is_wanted]
            self._calls = [call for call in self._calls if call.is_wanted]
            following = self._choose()
            if following is None:
                self._task = None
            elif self._task is not None:
                # As fair to other tasks as if each stream were one.
                reading = sum(not stream._is_lagging for stream in self._streams)
                self._task.weight = max(1, reading)
        for call in unwanted:
            call.close()
        if following is None:
            raise StopIteration
        if isinstance(following, Rest):
            return following
        self._advance(following)
        return None

    def _choose(self) -> _Call | Rest | None:
        """The call whose piece comes next; None: there is no stream left."""
        for call in self._calls:
            if call.has_reader:
                return call
        waiting = [stream for stream in self._streams if stream._is_waiting]
        if not waiting:
            return Rest(seconds=None) if self._streams else None
        patience = self._patience(waiting)
        return Rest(seconds=patience) if patience > 0 else self._plan(waiting)

    def _patience(self, waiting: list[ScoreStream]) -> float:
        """Seconds that the next call should wait for others that may share it."""
        weights = waiting[0]._waiting.weights
        if not all(same_weights(stream._waiting.weights, weights) for stream in waiting):
            return 0.0  # whichever comes first, the others gather meanwhile
        if self._planner.fills_a_call([stream._waiting for stream in waiting]):
            return 0.0
        return self._company.patience(weights, len(waiting), time.monotonic())

    def _plan(self, waiting: list[ScoreStream]) -> _Call:
        parts = self._planner.take_call([stream._waiting for stream in waiting])
        of_jobs = {id(stream._waiting): stream for stream in waiting}
        call = _Call(jobs=[], weights=parts[0][0].weights, streams={})
        for waiting_jobs, jobs in parts:
            stream = of_jobs[id(waiting_jobs)]
            stream._jobs_in_call = len(jobs)
            call.jobs += jobs
            call.streams.update((id(job), stream) for job in jobs)
        self._calls.append(call)
        self.call_count += 1
        self._company.left(call.weights, self._reading_beside(call.weights))
        return call

    def _advance(self, call: _Call) -> None:
        """Compute a piece of a call and deliver its result."""
        with self._lock:
            for stream in set(call.streams.values()):
                if stream._keeps_too_much:
                    self._withdraw(call, stream)
        result: tuple[ScoreJob, Rows] | None = None
        error: BaseException | None = None
        try:
            if call.pieces is None:
                call.pieces = self._scorer.score_jobs(call.jobs, call.weights, call.wants)
            result = next(call.pieces)
        except StopIteration:
            error = RuntimeError("the scorer ended before it had scored every row")
        except BaseException as raised:  # belongs to the streams of the call
            error = raised
        with self._lock:
            if error is not None:
                self._fail(call, error)
            elif result is not None:
                self._deliver(call, *result)
            if not call.streams:
                self._calls.remove(call)
        if not call.streams:
            call.close()

    def _withdraw(self, call: _Call, stream: ScoreStream) -> None:
        """A call goes on without a stream, whose jobs wait again for what is left of them."""
        jobs = [job for job in call.jobs if call.streams.get(id(job)) is stream]
        for job in jobs:
            del call.streams[id(job)]
        rest = [job.from_row(call.next_rows.get(id(job), job.score_from)) for job in jobs]
        self._planner.put_back(stream._waiting, rest)
        stream._jobs_in_call = 0

    def _deliver(self, call: _Call, job: ScoreJob, chunk: Rows) -> None:
        stream = call.streams[id(job)]
        stream._put(chunk)
        call.next_rows[id(job)] = chunk.end_row
        if call.next_rows[id(job)] < len(job.token_ids):
            return
        del call.streams[id(job)]
        stream._jobs_in_call -= 1
        if not stream._cancelled and not stream._jobs_in_call and not stream._waiting.portions:
            self._streams.remove(stream)
            stream._finish(None)

    def _fail(self, call: _Call, error: BaseException) -> None:
        """End the streams that wait for a call, and no others."""
        for stream in set(call.streams.values()):
            if not stream._cancelled:
                self._streams.remove(stream)
                stream._finish(error)
        call.streams.clear()

    def _abandon(self, error: BaseException | None) -> None:
        """Nothing further is computed: the queue's drain is over, or the task is broken."""
        with self._lock:
            calls, self._calls = self._calls, []
            streams, self._streams = self._streams, []
            self._task = None
            for stream in streams:
                if error is None:
                    stream.cancel()
                else:
                    stream._finish(error)
        for call in calls:
            call.close()
