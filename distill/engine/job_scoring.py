"""The scorer as the scheduler calls it: jobs of any kinds in one call, told apart by identity."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from distill.engine.scorer import ScoredChunk, ScoreJob, Scorer
from distill.engine.weights import ModelWeights


class JobScoring:
    """Splits a call by K and kind of support, which the scorer wants alike."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def score_jobs(
        self, jobs: Sequence[ScoreJob], weights: ModelWeights
    ) -> Iterator[tuple[ScoreJob, ScoredChunk] | None]:
        """See `JobScorer`."""
        kinds: dict[tuple[int, type], list[int]] = {}
        for index, job in enumerate(jobs):
            kinds.setdefault((job.top_k, type(job.support)), []).append(index)
        for indices in kinds.values():
            # The row names the job in the chunks, and rows of several requests would be the same.
            alike = [replace(jobs[index], row=index) for index in indices]
            for chunk in self._scorer.score(alike, weights):
                job = jobs[chunk.row]
                yield job, replace(chunk, row=job.row)
