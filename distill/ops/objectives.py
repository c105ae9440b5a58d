"""Every objective by name: how it is computed, and what it needs of a batch.

The wire names are those of the `Objective` enum. A new objective is a function in `divergences` or
`policy_objectives`, a line here, and a value of the enum.
"""

from dataclasses import dataclass

from distill.ops.divergences import (
    cross_entropy,
    jsd,
    renormalized,
    reverse_support,
    reverse_tail_bucket,
    reverse_truncated,
    sampled,
    support,
    tail_bucket,
    truncated,
)
from distill.ops.objective_rows import ObjectiveParameters, RowLoss, StudentRows, TargetRows
from distill.ops.policy_objectives import cispo, importance_sampling, ppo

__all__ = [
    "OBJECTIVES",
    "ObjectiveParameters",
    "ObjectiveSpec",
    "RowLoss",
    "StudentRows",
    "TargetRows",
]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """How an objective is computed and what it needs."""

    name: str
    """Lower-case wire name without its prefix."""

    row_loss: RowLoss
    """Loss of each row, [N]."""

    needs_distribution: bool = False
    """The targets are a teacher's log-probs over the full vocabulary, on any support."""

    reads_tail: bool = False
    """The loss depends on the teacher's probability outside the support."""

    needs_teacher_tail: bool = False
    """The loss is infinite where the teacher gives no probability to what the student may do."""

    needs_draw_weights: bool = False
    """The targets are the draw weights of a sampled support."""

    needs_advantages: bool = False
    """The targets are named tokens with advantages and the sampling policy's log-probs."""

    uses_beta: bool = False
    """Reads `ObjectiveParameters.beta`."""

    default_clips: tuple[float, float] | None = None
    """`clip_low` and `clip_high` where a request names none; None: the objective has no clips."""

    @property
    def reads_prompts(self) -> bool:
        """The targets are rows of a scored prompt; otherwise tokens that the caller names."""
        return self.needs_distribution or self.needs_draw_weights


OBJECTIVES: dict[str, ObjectiveSpec] = {
    spec.name: spec
    for spec in (
        ObjectiveSpec(name="cross_entropy", row_loss=cross_entropy),
        ObjectiveSpec(name="renormalized", row_loss=renormalized, needs_distribution=True),
        ObjectiveSpec(name="truncated", row_loss=truncated, needs_distribution=True),
        ObjectiveSpec(name="support", row_loss=support, needs_distribution=True),
        ObjectiveSpec(
            name="tail_bucket", row_loss=tail_bucket, needs_distribution=True, reads_tail=True
        ),
        ObjectiveSpec(name="reverse_support", row_loss=reverse_support, needs_distribution=True),
        ObjectiveSpec(
            name="reverse_truncated", row_loss=reverse_truncated, needs_distribution=True
        ),
        ObjectiveSpec(
            name="reverse_tail_bucket",
            row_loss=reverse_tail_bucket,
            needs_distribution=True,
            reads_tail=True,
            needs_teacher_tail=True,
        ),
        ObjectiveSpec(
            name="jsd",
            row_loss=jsd,
            needs_distribution=True,
            reads_tail=True,
            needs_teacher_tail=True,
            uses_beta=True,
        ),
        ObjectiveSpec(name="sampled", row_loss=sampled, needs_draw_weights=True),
        ObjectiveSpec(
            name="importance_sampling", row_loss=importance_sampling, needs_advantages=True
        ),
        ObjectiveSpec(name="ppo", row_loss=ppo, needs_advantages=True, default_clips=(0.8, 1.2)),
        ObjectiveSpec(
            name="cispo", row_loss=cispo, needs_advantages=True, default_clips=(0.0, 4.0)
        ),
    )
}
"""Every objective by name."""
