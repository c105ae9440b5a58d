"""A checked batch and its outcome: plain arrays, no protobuf, no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distill.arrays import FloatArray, Int32Array
from distill.rows import Rows


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What a batch minimises."""

    objective: str
    """A name of `distill.ops.objectives.OBJECTIVES`."""

    temperature: float = 1.0
    """Divides the student's logits."""

    sequence_mean: bool = False
    """Divide an example's loss by its number of weighted rows; otherwise sum."""

    beta: float = 0.5
    """Of `jsd`; other objectives ignore it."""

    clip_low: float = 0.0
    """Lower bound on the ratio, of `ppo` and `cispo`; other objectives ignore it."""

    clip_high: float = np.inf
    """Upper bound on the ratio, of `ppo` and `cispo`; other objectives ignore it."""


@dataclass(frozen=True, kw_only=True)
class NamedTokens:
    """Targets that the caller names: N target rows of K tokens each."""

    token_ids: Int32Array
    """[N, K]."""

    weights: FloatArray
    """Weights, or advantages, as the objective needs. [N, K]."""

    hard: bool = False
    """Whether the caller named one token per row, in shape (N,). Results have that shape then."""

    old_log_probs: FloatArray | None = None
    """With advantages: the log-probs that the tokens were sampled with, [N, K]."""


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """One sequence with its targets: N consecutive target rows with a support of K tokens."""

    input_tokens: Int32Array
    """[T]."""

    target_offset: int
    """First target row; row t is the distribution over the token that follows position t."""

    targets: Rows | NamedTokens
    """A teacher's N rows, or named tokens."""

    row_weights: FloatArray
    """Weight of each row's loss, [N]. All 1 with named tokens, which have weights of their own."""

    @property
    def token_ids(self) -> Int32Array:
        """The targets' tokens, [N, K]."""
        return self.targets.token_ids

    @property
    def values(self) -> FloatArray:
        """The objective's number for each token, [N, K]: the weights or advantages of named tokens,
        the draw weights of a sampled support, or the teacher's log p."""
        if isinstance(self.targets, NamedTokens):
            return self.targets.weights
        if self.targets.draw_weights is not None:
            return self.targets.draw_weights
        return self.targets.log_probs

    @property
    def hard(self) -> bool:
        """Whether results have the shape (N,)."""
        return isinstance(self.targets, NamedTokens) and self.targets.hard

    @property
    def weighted_rows(self) -> Int32Array:
        """Indices of the rows whose weight is not 0; the others cost no head compute."""
        weights = self.row_weights
        if isinstance(self.targets, NamedTokens):
            weights = np.abs(self.targets.weights).max(axis=-1)
        return np.flatnonzero(weights).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """A batch whose examples share one K and one kind of targets."""

    loss: LossSettings
    """What is minimised."""

    examples: tuple[TrainingExample, ...]
    """At least one."""

    @property
    def token_count(self) -> int:
        """Input tokens over all examples."""
        return sum(len(example.input_tokens) for example in self.examples)


@dataclass(frozen=True, kw_only=True)
class ExampleOutcome:
    """The result of one example; fields as in the message `ExampleResult`."""

    loss: float
    """Sum of the row losses after the reduction."""

    log_probs: FloatArray
    """log q at the targets: [N] for hard targets, else [N, K]. 0 in rows of weight 0."""

    row_losses: FloatArray
    """Loss of each row times its weight, before the reduction, [N]."""


@dataclass(frozen=True, kw_only=True)
class BatchOutcome:
    """The result of a batch; fields as in the message `BatchResult`."""

    loss: float
    """Sum over the examples."""

    row_count: int
    """Weighted rows."""

    token_count: int
    """Input tokens."""

    metrics: Mapping[str, float]
    """Means over the weighted rows, by field names of the message `BatchMetrics`. Only those that
    the targets define; empty when no row has a weight."""

    examples: tuple[ExampleOutcome, ...]
    """In the order of the batch."""
