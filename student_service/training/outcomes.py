"""From the rows of micro-batches back to the examples of the batch, on the host in NumPy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.arrays import BoolArray, FloatArray, Int32Array
from distill.ops.head import MAX_OVERLAP_SUPPORT
from distill.ops.objectives import OBJECTIVES
from student_service.training.batch import BatchOutcome, ExampleOutcome, TrainingBatch
from student_service.training.micro_batches import Sources


class RowOutcomes(NamedTuple):
    """What the compiled functions return for the R rows of a micro-batch. The trainer cuts the
    padding off when it fetches them."""

    log_probs: FloatArray
    """[R, K]."""

    losses: FloatArray
    """Before row weights and the reduction, [R]."""

    student_entropies: FloatArray
    """[R]."""

    top_token_ids: Int32Array
    """[R]."""

    support_overlaps: FloatArray
    """[R]."""

    tail_bucket_kls: FloatArray
    """[R]; zeros where the targets are not a distribution, without a meaning where they have no
    tail."""


def summarize(
    batch: TrainingBatch, sources: Sequence[Sources], rows: Sequence[RowOutcomes]
) -> BatchOutcome:
    """Put the rows back in the order and shape of the targets.

    Sums are taken in float64 in the order of the examples, so that the reported loss does not
    depend on how the batch was split.

    Args:
        batch: the batch that was computed.
        sources: of each micro-batch.
        rows: of each micro-batch, without padding, in the order of its sources.
    """
    log_probs = [np.zeros(each.token_ids.shape, np.float32) for each in batch.examples]
    row_losses = [np.zeros(len(each.token_ids), np.float32) for each in batch.examples]
    weighted_counts = [0] * len(batch.examples)
    for members, outcome in zip(sources, rows, strict=True):
        start = 0
        for index, weighted in members:
            here = slice(start, start + len(weighted))
            log_probs[index][weighted] = outcome.log_probs[here]
            weights = batch.examples[index].row_weights[weighted]
            row_losses[index][weighted] = outcome.losses[here] * weights
            weighted_counts[index] = len(weighted)
            start += len(weighted)
    examples = []
    for index, example in enumerate(batch.examples):
        loss = float(row_losses[index].sum(dtype=np.float64))
        if batch.loss.sequence_mean:
            loss /= max(1, weighted_counts[index])
        examples.append(
            ExampleOutcome(
                loss=loss,
                log_probs=log_probs[index][:, 0] if example.hard else log_probs[index],
                row_losses=row_losses[index],
            )
        )
    return BatchOutcome(
        loss=sum(example.loss for example in examples),
        row_count=sum(weighted_counts),
        token_count=batch.token_count,
        metrics=_metrics(batch, sources, rows) if any(weighted_counts) else {},
        examples=tuple(examples),
    )


def _metrics(
    batch: TrainingBatch, sources: Sequence[Sources], rows: Sequence[RowOutcomes]
) -> dict[str, float]:
    """Means over the weighted rows of all micro-batches, in float64, by field names of the message
    `BatchMetrics`. A metric that the targets do not define is left out."""

    def of_student(field: str) -> NDArray[Any]:
        return np.concatenate([getattr(outcome, field) for outcome in rows])

    weighted_rows = [
        (batch.examples[index], weighted) for members in sources for index, weighted in members
    ]

    def of_teacher(field: str) -> NDArray[Any] | None:
        """A field of the teacher's `Rows` at each weighted row: an array [N], or one value for all
        rows of an example. None where an example has none."""
        values = [getattr(example.targets, field) for example, _ in weighted_rows]
        if any(value is None for value in values):
            return None
        return np.concatenate(
            [
                np.broadcast_to(value, len(example.token_ids))[weighted]
                for value, (example, weighted) in zip(values, weighted_rows, strict=True)
            ]
        )

    def mean(values: NDArray[Any]) -> float:
        return float(values.mean(dtype=np.float64))

    spec = OBJECTIVES[batch.loss.objective]
    target_ids = np.concatenate(
        [example.token_ids[weighted] for example, weighted in weighted_rows]
    )
    values = np.concatenate([example.values[weighted] for example, weighted in weighted_rows])
    student_probs = np.exp(of_student("log_probs"))
    if not spec.needs_distribution:
        # Slots may repeat a token or be unused here. A distribution names each token once.
        is_used = values != 0
        student_probs = np.where(_first_uses(target_ids, is_used), student_probs, 0.0)
    metrics = {
        "student_entropy": mean(of_student("student_entropies")),
        "student_support_mass": mean(student_probs.sum(-1)),
    }
    entropies = of_teacher("entropies") if spec.reads_prompts else None
    if entropies is not None:
        metrics["teacher_entropy"] = mean(entropies)
    if not spec.needs_distribution:
        return metrics
    log_p = values
    tails = of_teacher("tail_log_probs")
    if tails is not None:
        metrics["tail_bucket_kl"] = mean(of_student("tail_bucket_kls"))
    metrics["teacher_support_mass"] = mean(np.exp(log_p).sum(-1))
    if target_ids.shape[1] <= MAX_OVERLAP_SUPPORT:
        metrics["top_k_overlap"] = mean(of_student("support_overlaps"))
    holds_best = of_teacher("most_probable")
    if tails is not None:
        # No token outside the support is more probable than the tail, which is all of them.
        holds_best = holds_best | (log_p.max(-1) >= tails)
    if np.all(holds_best):
        best = log_p.argmax(-1)[:, None]
        teacher_top = np.take_along_axis(target_ids, best, axis=-1)[:, 0]
        metrics["top_1_agreement"] = mean(teacher_top == of_student("top_token_ids"))
    return metrics


def _first_uses(token_ids: Int32Array, is_used: BoolArray) -> BoolArray:
    """Whether each slot [R, K] is used and is the first used one of its row with its token."""
    # An unused slot gets a negative number of its own, so that it repeats no token.
    numbers = np.where(is_used, token_ids, -1 - np.arange(token_ids.shape[1], dtype=np.int32))
    order = np.argsort(numbers, axis=-1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=-1)
    starts = np.ones(ordered.shape, bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    is_first = np.empty_like(starts)
    np.put_along_axis(is_first, order, starts, axis=-1)
    return is_first & is_used
