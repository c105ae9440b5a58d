"""One call of the scorer, and the streams that its chunks go to."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from distill.engine.score_stream import ScoreStream
from distill.engine.scoring_jobs import IsWanted, ScoreJob
from distill.engine.weights import ModelWeights
from distill.rows import Rows


class JobScorer(Protocol):
    """What a call needs of a scorer."""

    def score_jobs(
        self, jobs: Sequence[ScoreJob], weights: ModelWeights, is_wanted: IsWanted
    ) -> Iterator[tuple[ScoreJob, Rows] | None]:
        """Score jobs of any kinds together.

        Every `next()` is one bounded piece of compute; None is one without a result. The jobs in
        the results are the very objects that were given. The chunks of a job come in order and
        tile [score_from, T) exactly once. They end earlier where the job is not wanted any more;
        `is_wanted` is asked before each piece.
        """


class ScoringCall:
    """One call of the scorer, from its plan to its last chunk.

    All but `compute_piece` needs the lock of the streams.
    """

    def __init__(
        self,
        parts: Sequence[tuple[ScoreStream, Sequence[ScoreJob]]],
        weights: ModelWeights,
        scorer: JobScorer,
    ) -> None:
        """
        Args:
            parts: the streams that take part, with their jobs, in the order of computing. No two
                jobs are the same object, for a job's identity says which stream its chunks go to.
            weights: what it computes under.
            scorer: computes.
        """
        self._jobs = [job for _, jobs in parts for job in jobs]
        self._weights = weights
        self._scorer = scorer
        self._streams = {id(job): stream for stream, jobs in parts for job in jobs}
        """By the id of a job that is not finished: the stream that gets its chunks."""
        self._next_rows = {id(job): job.score_from for job in self._jobs}
        """By the id of a job: the first row that is not delivered yet."""
        self._pieces: Iterator[tuple[ScoreJob, Rows] | None] | None = None
        """The scorer's; None before the first piece."""
        for stream, jobs in parts:
            stream._jobs_in_call = len(jobs)

    @property
    def streams(self) -> set[ScoreStream]:
        """Those that it has unfinished jobs of."""
        return set(self._streams.values())

    @property
    def is_wanted(self) -> bool:
        """Whether any stream waits for its chunks."""
        return any(not stream._cancelled for stream in self.streams)

    @property
    def has_reader(self) -> bool:
        """Whether any stream that keeps up waits for its chunks."""
        return any(not stream._cancelled and not stream._is_lagging for stream in self.streams)

    def compute_piece(self) -> tuple[ScoreJob, Rows] | None:
        """Compute one piece and return its result, if it has one.

        Raises:
            RuntimeError: the scorer has nothing left to compute.
        """
        if self._pieces is None:
            self._pieces = self._scorer.score_jobs(self._jobs, self._weights, self._is_job_wanted)
        try:
            return next(self._pieces)
        except StopIteration:
            raise RuntimeError("the scorer ended before it had scored every row") from None

    def deliver(self, job: ScoreJob, chunk: Rows) -> None:
        """Give a chunk to the stream of its job."""
        stream = self._streams[id(job)]
        stream._put(chunk)
        self._next_rows[id(job)] = chunk.end_row
        if self._next_rows[id(job)] >= len(job.token_ids):
            del self._streams[id(job)]
            stream._finish_job()

    def withdraw(self, stream: ScoreStream) -> list[ScoreJob]:
        """Go on without a stream, and return what is left of its jobs."""
        jobs = [job for job in self._jobs if self._streams.get(id(job)) is stream]
        for job in jobs:
            del self._streams[id(job)]
        stream._jobs_in_call = 0
        return [job.from_row(self._next_rows[id(job)]) for job in jobs]

    def fail(self, error: BaseException) -> None:
        """End the streams of the call, and no others."""
        for stream in self.streams:
            if not stream._cancelled:
                stream._finish(error)
        self._streams.clear()

    def close(self) -> None:
        """Free what the scorer holds for it."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            with suppress(Exception):  # no stream is left that could be told
                close()

    def _is_job_wanted(self, job: ScoreJob) -> bool:
        # Without the lock: the scorer asks while it computes, and a late answer costs one piece.
        stream = self._streams.get(id(job))
        return stream is not None and not stream._cancelled
