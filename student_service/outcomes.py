"""From the rows of micro-batches back to the examples of the batch, on the host in NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill.ops.head import MAX_OVERLAP_SUPPORT
from distill.ops.objectives import OBJECTIVES
from distill.tensors import FloatArray, Int32Array
from student_service.batch import BatchMetrics, BatchOutcome, ExampleOutcome, TrainingBatch
from student_service.micro_batches import MicroBatch


class RowOutcomes(NamedTuple):
    """What the compiled functions return for the N rows of a micro-batch."""

    log_probs: FloatArray
    """[N, K]."""

    losses: FloatArray
    """Before row weights and the reduction, [N]."""

    student_entropies: FloatArray
    """[N]."""

    top_token_ids: Int32Array
    """[N]."""

    support_overlaps: FloatArray
    """[N]."""

    tail_bucket_kls: FloatArray
    """[N]; zeros where the targets are no distribution."""


def summarize(
    batch: TrainingBatch, micro_batches: Sequence[MicroBatch], rows: Sequence[RowOutcomes]
) -> BatchOutcome:
    """Put the rows back in the order and shape of the targets.

    Sums are taken in float64 in the order of the examples, so that the reported loss does not
    depend on how the batch was split.
    """
    log_probs = [np.zeros(e.targets.token_ids.shape, np.float32) for e in batch.examples]
    row_losses = [np.zeros(len(e.targets.token_ids), np.float32) for e in batch.examples]
    weighted_counts = [0] * len(batch.examples)
    for micro_batch, outcome in zip(micro_batches, rows, strict=True):
        start = 0
        for index, weighted in micro_batch.sources:
            here = slice(start, start + len(weighted))
            log_probs[index][weighted] = outcome.log_probs[here]
            weights = batch.examples[index].targets.row_weights[weighted]
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
                log_probs=log_probs[index][:, 0] if example.targets.hard else log_probs[index],
                row_losses=row_losses[index],
            )
        )
    return BatchOutcome(
        loss=sum(example.loss for example in examples),
        row_count=sum(weighted_counts),
        token_count=batch.token_count,
        metrics=_metrics(batch, micro_batches, rows) if any(weighted_counts) else None,
        examples=tuple(examples),
    )


def _metrics(
    batch: TrainingBatch, micro_batches: Sequence[MicroBatch], rows: Sequence[RowOutcomes]
) -> BatchMetrics:
    """Means over the weighted rows of all micro-batches, in float64."""

    def over_rows(arrays: Sequence[FloatArray]) -> FloatArray:
        real = [a[: m.weighted_row_count] for a, m in zip(arrays, micro_batches, strict=True)]
        return np.concatenate(real)

    def mean(values: FloatArray) -> float:
        return float(values.mean(dtype=np.float64))

    log_q = over_rows([r.log_probs for r in rows])
    student_entropy = mean(over_rows([r.student_entropies for r in rows]))
    student_mass = mean(np.exp(log_q).sum(-1))
    spec = OBJECTIVES[batch.loss.objective]
    if not spec.needs_distribution:
        return BatchMetrics(
            tail_bucket_kl=None,
            teacher_entropy=mean(over_rows([m.teacher_entropies for m in micro_batches]))
            if spec.reads_prompts
            else None,
            student_entropy=student_entropy,
            teacher_support_mass=None,
            student_support_mass=student_mass,
            top_k_overlap=None,
            top_1_agreement=None,
        )
    log_p = over_rows([m.target_values for m in micro_batches])
    target_ids = np.concatenate([m.target_ids[: m.weighted_row_count] for m in micro_batches])
    teacher_top = np.take_along_axis(target_ids, log_p.argmax(-1)[:, None], axis=-1)[:, 0]
    student_top = np.concatenate(
        [r.top_token_ids[: m.weighted_row_count] for r, m in zip(rows, micro_batches, strict=True)]
    )
    overlap_measured = target_ids.shape[1] <= MAX_OVERLAP_SUPPORT
    return BatchMetrics(
        tail_bucket_kl=mean(over_rows([r.tail_bucket_kls for r in rows])),
        teacher_entropy=mean(over_rows([m.teacher_entropies for m in micro_batches])),
        student_entropy=student_entropy,
        teacher_support_mass=mean(np.exp(log_p).sum(-1)),
        student_support_mass=student_mass,
        top_k_overlap=mean(over_rows([r.support_overlaps for r in rows]))
        if overlap_measured
        else None,
        top_1_agreement=float((teacher_top == student_top).mean()),
    )
