"""A scorer without a model, for the tests of what schedules it, and what they look at."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from distill.engine.scoring_jobs import IsWanted, ScoreJob
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.engine.weights import ModelWeights
from distill.rows import Rows
from tests.support.waiting import wait_until

Scheduling = Callable[..., ScoringScheduler]
"""Makes a scheduler of the fake scorer."""

WEIGHTS = [ModelWeights({"embedding": index}, adapter=None) for index in range(3)]


def job(length: int, *, row: int = 0, mark: int = 0) -> ScoreJob:
    """A prompt of `length` wanted rows whose tokens are all `mark`."""
    return ScoreJob(
        prompt_index=row,
        token_ids=np.full(length + 1, mark, np.int32),
        score_from=1,
        top_k=1,
        temperature=1.0,
    )


class FakeScorer:
    """A piece for the body of each job, and one for each of its rows; chunks show its mark."""

    def __init__(self) -> None:
        self.calls: list[tuple[ModelWeights, list[int]]] = []
        """The weights and the marks of the jobs of each call."""

        self.pieces: list[int] = []
        """The marks of the jobs of all pieces, as they ran."""

        self.closed_calls = 0
        self._iterators: list[Iterator[tuple[ScoreJob, Rows] | None]] = []
        self.before_piece: Callable[[ScoreJob], None] = lambda _: None

    def score_jobs(
        self, jobs: Sequence[ScoreJob], weights: ModelWeights, is_wanted: IsWanted
    ) -> Iterator[tuple[ScoreJob, Rows] | None]:
        self.calls.append((weights, [int(each.token_ids[0]) for each in jobs]))
        # Kept, so that only an explicit `close` ends a call early.
        self._iterators.append(self._run(jobs, is_wanted))
        return self._iterators[-1]

    def _run(
        self, jobs: Sequence[ScoreJob], is_wanted: IsWanted
    ) -> Iterator[tuple[ScoreJob, Rows] | None]:
        try:
            for each in jobs:
                if not is_wanted(each):
                    continue
                self._piece(each)
                yield None
                for position in range(each.score_from, len(each.token_ids)):
                    if not is_wanted(each):
                        break
                    self._piece(each)
                    yield each, chunk(each, position)
        finally:
            self.closed_calls += 1

    def _piece(self, each: ScoreJob) -> None:
        self.before_piece(each)
        self.pieces.append(int(each.token_ids[0]))


def chunk(job: ScoreJob, position: int) -> Rows:
    return Rows(
        prompt_index=job.prompt_index,
        first_row=position,
        token_ids=job.token_ids[position : position + 1, None],
        log_probs=np.zeros((1, 1), np.float32),
        prompt_log_probs=np.zeros(1, np.float32),
        tail_log_probs=np.zeros(1, np.float32),
        entropies=np.zeros(1, np.float32),
    )


class Stop:
    """Holds the worker before the first piece of a job with this mark."""

    def __init__(self, scorer: FakeScorer, mark: int, wait_seconds: float) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

        def hold(job: ScoreJob) -> None:
            if job.token_ids[0] == mark:
                self.reached.set()
                assert self._open.wait(wait_seconds)

        scorer.before_piece = hold
        self._wait_seconds = wait_seconds

    def wait(self) -> None:
        assert self.reached.wait(self._wait_seconds)

    def open(self) -> None:
        self._open.set()


def rows(chunks: Iterable[Rows]) -> list[tuple[int, int, int]]:
    """Prompt, position and mark of the chunks."""
    return [(each.prompt_index, each.first_row, int(each.token_ids[0, 0])) for each in chunks]


def rows_of(*jobs: ScoreJob) -> list[tuple[int, int, int]]:
    """What `rows` is for all chunks of these jobs."""
    return [
        (each.prompt_index, position, int(each.token_ids[0]))
        for each in jobs
        for position in range(each.score_from, len(each.token_ids))
    ]


def marks(fake_scorer: FakeScorer) -> list[list[int]]:
    """Those of the jobs of each call."""
    return [marks for _, marks in fake_scorer.calls]


def wait_until_resting(scheduler: ScoringScheduler) -> None:
    """Wait until the scheduler has nothing to do."""
    task = scheduler._task
    assert task is not None
    wait_until(lambda: task._state is task._state.RESTING)
