"""What is scored, and what comes out. NumPy; knows neither protobuf nor JAX.

Letters: T tokens of a prompt, P rows of a chunk, K support size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from distill.engine.supports import Support
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
