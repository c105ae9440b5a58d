"""What is scored, and what comes out. NumPy; knows neither protobuf nor JAX.

Letters: T tokens of a prompt, P rows of a chunk, K support size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from distill.engine.supports import Candidates, Support
from distill.tensors import FloatArray, Int32Array


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """One prompt to score, already validated."""

    row: int
    """Index of the prompt in its request; names it in the chunks."""

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
        """The rest of it, from this row on."""
        support = self.support
        if isinstance(support, Candidates):
            support = Candidates(token_ids=support.token_ids[row - self.score_from :])
        return replace(self, score_from=row, support=support)


IsWanted: TypeAlias = Callable[[ScoreJob], bool]
"""Whether anybody waits for further rows of a job. Once it is not wanted, it never is again."""


def always_wanted(_: ScoreJob) -> bool:
    """The `IsWanted` of a caller who wants all."""
    return True


@dataclass(frozen=True, kw_only=True)
class ScoredChunk:
    """Distributions of P consecutive rows of one prompt; fields as in the message TopKChunk."""

    row: int
    """The prompt."""

    position_offset: int
    """The first of the rows, in prompt coordinates."""

    token_ids: Int32Array
    """[P, K], in the order of the support."""

    log_probs: FloatArray
    """[P, K]."""

    prompt_log_probs: FloatArray
    """[P], of the prompt's own tokens."""

    tail_log_probs: FloatArray
    """[P], of everything outside the support."""

    entropies: FloatArray
    """[P], in nats."""

    weights: FloatArray | None = None
    """[P, K], of a sampled support."""

    most_probable: bool = False
    """Whether the support is the K most probable tokens."""

    @property
    def byte_count(self) -> int:
        """Of its arrays."""
        arrays = (
            self.token_ids,
            self.log_probs,
            self.prompt_log_probs,
            self.tail_log_probs,
            self.entropies,
        )
        return sum(each.nbytes for each in arrays) + (
            0 if self.weights is None else self.weights.nbytes
        )
