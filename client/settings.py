"""What a caller says: sampling, training, weights. None means the service's default."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = Sequence[int] | NDArray[np.integer]
"""Token ids of one sequence."""


class Objective(StrEnum):
    """What a batch minimises; docs/objectives.md derives the fixed points."""

    CROSS_ENTROPY = "cross_entropy"
    RENORMALIZED = "renormalized"
    TRUNCATED = "truncated"
    SUPPORT = "support"
    TAIL_BUCKET = "tail_bucket"
    REVERSE_SUPPORT = "reverse_support"
    REVERSE_TRUNCATED = "reverse_truncated"
    REVERSE_TAIL_BUCKET = "reverse_tail_bucket"
    JSD = "jsd"
    SAMPLED = "sampled"
    IMPORTANCE_SAMPLING = "importance_sampling"
    PPO = "ppo"
    CISPO = "cispo"


DISTRIBUTION_OBJECTIVES = (
    Objective.RENORMALIZED,
    Objective.TRUNCATED,
    Objective.SUPPORT,
    Objective.TAIL_BUCKET,
    Objective.REVERSE_SUPPORT,
    Objective.REVERSE_TRUNCATED,
    Objective.REVERSE_TAIL_BUCKET,
    Objective.JSD,
)
"""Those that a teacher's distributions on the top K, or on candidates, are enough for."""


class Reduction(StrEnum):
    """How the rows of an example become its loss."""

    SUM = "sum"
    SEQUENCE_MEAN = "sequence_mean"


class Normalization(StrEnum):
    """What an optimizer step divides the gradient sum by."""

    NONE = "none"
    ROWS = "rows"
    EXAMPLES = "examples"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to sample; one setting for all the prompts of a request."""

    max_tokens: int
    """Most tokens per sample."""

    temperature: float | None = None
    """Divides the logits; 0 takes the most probable token. None: 1."""

    top_k: int | None = None
    """Keep only the k most probable tokens. None: no such limit."""

    top_p: float | None = None
    """Keep the smallest set of tokens that reaches this probability. None: 1."""

    seed: int | None = None
    """Same seed, prompts and weights: same samples. None: 0."""

    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a sample. Empty: the tokenizer's end tokens."""

    stop_strings: tuple[str, ...] = ()
    """Texts that end a sample."""

    ignore_end_tokens: bool = False
    """Generate through the tokenizer's end tokens."""

    samples_per_prompt: int | None = None
    """Samples of each prompt. None: 1."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Train a low-rank adapter (https://arxiv.org/abs/2106.09685)."""

    rank: int = 16
    """Rank of the update."""

    alpha: float | None = None
    """The update is scaled by alpha / rank. None: 2 * rank."""

    target_modules: tuple[str, ...] = ()
    """Projections with an adapter. Empty: all of them."""

    seed: int | None = None
    """Seed of the initial weights. None: 0."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101) with the settings of one step."""

    learning_rate: float
    """Step size."""

    beta1: float | None = None
    """Decay of the first moment. None: 0.9."""

    beta2: float | None = None
    """Decay of the second moment. None: 0.95."""

    epsilon: float | None = None
    """Added to the denominator. None: 1e-8."""

    weight_decay: float | None = None
    """Decoupled weight decay. None: 0."""

    max_gradient_norm: float | None = None
    """Scale the gradient down to this global norm. None: no clipping."""


@dataclass(frozen=True, kw_only=True)
class ScoredPrompt:
    """One prompt to score."""

    token_ids: Tokens
    """Token ids, [T]."""

    score_from: int | None = None
    """First row wanted, in [1, T); row i is the distribution over token i. None: 1."""

    candidate_ids: NDArray[np.integer] | None = None
    """The support of each row, [T - score_from, K], no token twice in a row. All prompts of a
    request name candidates, with one K, or none does. None: the service chooses the support."""


@dataclass(frozen=True, kw_only=True)
class SampledSupport:
    """A support of the most probable tokens and draws from the others, with importance weights."""

    exact_count: int = 0
    """How many of the K tokens are the most probable ones, in [0, K); the others are drawn."""

    seed: int | None = None
    """Seed of the draws. None: 0."""


@dataclass(frozen=True, kw_only=True)
class PulledTargets:
    """The student asks this teacher for the distributions; the client sends none."""

    teacher: str
    """Name of a teacher that the student was started with."""

    prompts: Sequence[ScoredPrompt]
    """What the teacher scores; examples name a prompt by its index."""

    top_k: int | None = None
    """K, the support size. None: the prompts name their candidates."""

    temperature: float | None = None
    """Divides the teacher's logits. None: 1."""

    sampled: SampledSupport | None = None
    """How the support is drawn. None: the K most probable tokens, or the candidates."""


@dataclass(frozen=True, kw_only=True)
class DistributionExample:
    """A training sequence whose targets are a teacher's distributions.

    Prompt row `prompt_offset + j` of the teacher is the target of the student's target row
    `target_offset + j`, the distribution over the token that follows that position. The two
    prefixes may differ in length.
    """

    input_tokens: Tokens
    """The student's input, [T]."""

    target_offset: int
    """First target row, in [0, T)."""

    prompt_index: int
    """Index of the scored prompt."""

    prompt_offset: int
    """First row of the prompt, at least 1."""

    row_count: int
    """N: number of rows; target_offset + N <= T."""

    row_weights: NDArray[np.floating] | None = None
    """Weight of each row's loss, [N]. None: 1 everywhere."""


@dataclass(frozen=True, kw_only=True)
class TokenExample:
    """A training sequence whose targets are named tokens.

    With weights for cross_entropy; with advantages and old log-probs for importance_sampling, ppo
    and cispo.
    """

    input_tokens: Tokens
    """The student's input, [T]."""

    target_offset: int
    """First target row, in [0, T)."""

    token_ids: NDArray[np.integer]
    """Target ids, [N] or [N, K]."""

    weights: NDArray[np.floating] | None = None
    """Weights of any sign, of the same shape. None: 1 everywhere."""

    advantages: NDArray[np.floating] | None = None
    """Advantages of any sign, of the same shape."""

    old_log_probs: NDArray[np.floating] | None = None
    """The log-probs with which the tokens were sampled, of the same shape."""


Example: TypeAlias = DistributionExample | TokenExample


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What a batch minimises and what comes back."""

    objective: Objective = Objective.TAIL_BUCKET
    """The objective."""

    temperature: float | None = None
    """Divides the student's logits. None: 1."""

    reduction: Reduction = Reduction.SUM
    """How the rows of an example add up."""

    jsd_beta: float | None = None
    """beta of jsd, in [0, 1]: 0 is tail_bucket, 1 reverse_tail_bucket. None: 0.5."""

    clip_low: float | None = None
    """Lower bound on the ratio of ppo and cispo. None: 0.8 and 0."""

    clip_high: float | None = None
    """Upper bound on the ratio of ppo and cispo. None: 1.2 and 4."""

    return_log_probs: bool = False
    """Return the student's log-probs in the shape of the targets."""

    return_row_losses: bool = False
    """Return the loss of each target row."""


@dataclass(frozen=True, kw_only=True)
class CheckpointWeights:
    """The weights of a saved checkpoint of the run."""

    name: str
    """Name of the checkpoint."""


class Weights(StrEnum):
    """Weights of a run that need no name."""

    CURRENT = "current"
    BASE = "base"


WeightsChoice: TypeAlias = Weights | CheckpointWeights
