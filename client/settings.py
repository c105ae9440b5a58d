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


@dataclass(frozen=True, kw_only=True)
class PulledTargets:
    """The student asks this teacher for the distributions; the client sends none."""

    teacher: str
    """Name of a teacher that the student was started with."""

    prompts: Sequence[ScoredPrompt]
    """What the teacher scores; examples name a prompt by its index."""

    top_k: int
    """K, the support size."""

    temperature: float | None = None
    """Divides the teacher's logits. None: 1."""


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
    """A training sequence whose targets are named tokens with weights (cross_entropy)."""

    input_tokens: Tokens
    """The student's input, [T]."""

    target_offset: int
    """First target row, in [0, T)."""

    token_ids: NDArray[np.integer]
    """Target ids, [N] or [N, K]."""

    weights: NDArray[np.floating] | None = None
    """Weights of any sign, of the same shape. None: 1 everywhere."""


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
