"""What is scored. Knows neither protobuf nor JAX.

Letters: T tokens of a prompt, K support size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from distill.arrays import Int32Array
from distill.engine.supports import Candidates, Support


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """One prompt to score, already validated."""

    prompt_index: int
    """Index of the prompt in its request; names it in the rows that come out."""

    token_ids: Int32Array
    """[T], T >= 2."""

    score_from: int
    """First wanted row, in [1, T). Row i is the distribution over token i given those before."""

    top_k: int
    """K, in [1, V]."""

    temperature: float
    """Divides the logits; greater than 0."""

    support: Support = None
    """Which K tokens; None: the most probable."""

    def from_row(self, row: int) -> "ScoreJob":
        """The same job without the rows before this one."""
        support = self.support
        if isinstance(support, Candidates):
            support = Candidates(token_ids=support.token_ids[row - self.score_from :])
        return replace(self, score_from=row, support=support)


IsWanted: TypeAlias = Callable[[ScoreJob], bool]
"""Whether anybody waits for further rows of a job. Once the answer is False it stays False."""


def always_wanted(_: ScoreJob) -> bool:
    """The `IsWanted` of a caller who wants every row."""
    return True
