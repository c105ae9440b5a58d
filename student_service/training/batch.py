"""What a batch is once it has been checked: plain arrays, no protobuf, no JAX."""

from dataclasses import dataclass

import numpy as np

from distill.tensors import BoolArray, FloatArray, Int32Array


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
    """Of `jsd`; the others ignore it."""

    clip_low: float = 0.0
    """Lower bound on the ratio, of `ppo` and `cispo`; the others ignore it."""

    clip_high: float = np.inf
    """Upper bound on the ratio, of `ppo` and `cispo`; the others ignore it."""


@dataclass(frozen=True, kw_only=True)
class ExampleTargets:
    """The targets of one example: N consecutive target rows with a support of K tokens."""

    offset: int
    """First target row; row t is the distribution over the token that follows position t."""

    token_ids: Int32Array
    """[N, K]."""

    values: FloatArray
    """Weights, advantages, or the teacher's log p: as the objective needs. [N, K]."""

    tail_log_probs: FloatArray
    """Log of the teacher's probability outside the support, [N]. Zeros for named tokens."""

    teacher_entropies: FloatArray
    """Entropy of the teacher in nats, [N]. Zeros for named tokens."""

    most_probable: BoolArray
    """Whether the support is the teacher's K most probable tokens, [N]."""

    row_weights: FloatArray
    """Weight of each row's loss, [N]. Ones for named tokens, whose weights are their values."""

    hard: bool
    """The caller named one token per row, with shape (N,): results have that shape too."""

    old_log_probs: FloatArray | None = None
    """The sampling policy's log-probs of the tokens, [N, K]; with advantages only."""

    def weighted_rows(self, objective_reads_prompts: bool) -> Int32Array:
        """Indices of the rows that count; the others cost no head compute."""
        weights = self.row_weights
        if not objective_reads_prompts:
            weights = np.abs(self.values).max(axis=-1)
        return np.flatnonzero(weights).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """One sequence with its targets."""

    input_tokens: Int32Array
    """[T]."""

    targets: ExampleTargets
    """Rows offset … offset + N - 1 of it."""


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
    """What came out for one example."""

    loss: float
    """After the reduction."""

    log_probs: FloatArray
    """log q at the targets: [N] for hard targets, else [N, K]. 0 in rows of weight 0."""

    row_losses: FloatArray
    """Loss of each row times its weight, before the reduction, [N]."""


@dataclass(frozen=True, kw_only=True)
class BatchMetrics:
    """Means over the weighted rows; None where the targets do not define it."""

    tail_bucket_kl: float | None
    """KL(p || q) over the support and one bucket for the tail, nats."""

    teacher_entropy: float | None
    """Nats."""

    student_entropy: float
    """Nats."""

    teacher_support_mass: float | None
    """Teacher probability on the support."""

    student_support_mass: float
    """Student probability on the support, each token once."""

    top_k_overlap: float | None
    """Share of the support that is in the student's own top K."""

    top_1_agreement: float | None
    """Share of rows where both have the same most probable token; None where the support of a row
    may not hold the teacher's."""


@dataclass(frozen=True, kw_only=True)
class BatchOutcome:
    """What came out for a batch."""

    loss: float
    """Sum over the examples."""

    row_count: int
    """Weighted rows."""

    token_count: int
    """Input tokens."""

    metrics: BatchMetrics | None
    """None when no row has a weight."""

    examples: tuple[ExampleOutcome, ...]
    """In the order of the batch."""
