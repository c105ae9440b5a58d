"""A batch of ragged examples as a few padded arrays of bucketed shape.

Letters: B rows, T positions in a row, N weighted target rows, K support size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.engine.buckets import length_bucket, power_of_two_at_least
from distill.ops.head import chunk_row_count
from distill.ops.objectives import OBJECTIVES
from distill.tensors import FloatArray, Int32Array
from student_service.batch import TrainingBatch

MIN_LENGTH = 32
"""Shortest padded row: below it a row costs about the same and would only add a shape."""

MIN_ROWS = 128
"""Fewest padded target rows: a hundred rows of the head cost milliseconds, another shape costs
seconds of compilation."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Arrays of one compiled call. Padding has scale 0 and therefore no effect."""

    token_ids: Int32Array
    """[B, T], right-padded with 0."""

    row_positions: Int32Array
    """Where each weighted target row is in the flattened [B * T] positions, [N]."""

    target_ids: Int32Array
    """[N, K]."""

    target_values: FloatArray
    """Weights, advantages or log p, [N, K]."""

    tail_log_probs: FloatArray
    """[N]."""

    old_log_probs: FloatArray
    """[N, K]; zeros where the objective has no use for them."""

    teacher_entropies: FloatArray
    """[N]."""

    row_scales: FloatArray
    """Row weight times the reduction's factor, [N]."""

    sources: tuple[tuple[int, Int32Array], ...]
    """For each example in it: its index in the batch and its weighted rows. Their results lie one
    after the other in the first entries of the N rows."""

    @property
    def weighted_row_count(self) -> int:
        """Rows that are no padding."""
        return sum(len(rows) for _, rows in self.sources)


def count_bucket(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, …"""
    return 1 if count == 1 else length_bucket(count, smallest=2)


def row_bucket(row_count: int, vocab_size: int) -> int:
    """A bucket of weighted rows that the head can cut into whole chunks."""
    chunk_rows = chunk_row_count(1 << 30, vocab_size)
    if row_count >= chunk_rows:
        return chunk_rows * count_bucket(-(-row_count // chunk_rows))
    return max(min(MIN_ROWS, chunk_rows), power_of_two_at_least(row_count))


def split_into_micro_batches(
    batch: TrainingBatch, *, token_budget: int, max_length: int, vocab_size: int
) -> list[MicroBatch]:
    """Group examples of similar length so that little is padded.

    A sequence is cut after its last weighted row: nothing later can change the loss. Examples
    without a weighted row are left out.

    Args:
        batch: the checked batch.
        token_budget: most padded positions B * T in one micro-batch, one row at the least.
        max_length: the model's longest sequence; no row is padded beyond it.
        vocab_size: V, which sets the head's chunk.
    """
    reads_prompts = OBJECTIVES[batch.loss.objective].reads_prompts
    lengths: dict[int, int] = {}
    weighted: dict[int, Int32Array] = {}
    for index, example in enumerate(batch.examples):
        rows = example.targets.weighted_rows(reads_prompts)
        if len(rows):
            weighted[index] = rows
            lengths[index] = example.targets.offset + int(rows[-1]) + 1
    groups: list[tuple[int, list[int]]] = []  # padded length, example indices
    for index in sorted(lengths, key=lambda i: (-lengths[i], i)):
        padded = min(max_length, length_bucket(lengths[index], smallest=MIN_LENGTH))
        if groups and groups[-1][0] * count_bucket(len(groups[-1][1]) + 1) <= token_budget:
            groups[-1][1].append(index)
        else:
            groups.append((padded, [index]))
    return [
        _micro_batch(batch, indices, [weighted[i] for i in indices], padded, vocab_size)
        for padded, indices in groups
    ]


def _micro_batch(
    batch: TrainingBatch,
    indices: Sequence[int],
    rows_of: Sequence[Int32Array],
    length: int,
    vocab_size: int,
) -> MicroBatch:
    row_count = count_bucket(len(indices))
    target_count = row_bucket(sum(len(rows) for rows in rows_of), vocab_size)
    support_size = batch.examples[0].targets.token_ids.shape[1]
    token_ids = np.zeros((row_count, length), np.int32)
    row_positions = np.zeros(target_count, np.int32)
    target_ids = np.zeros((target_count, support_size), np.int32)
    target_values = np.zeros((target_count, support_size), np.float32)
    tail_log_probs = np.zeros(target_count, np.float32)
    old_log_probs = np.zeros((target_count, support_size), np.float32)
    teacher_entropies = np.zeros(target_count, np.float32)
    row_scales = np.zeros(target_count, np.float32)
    start = 0
    for row, (index, rows) in enumerate(zip(indices, rows_of, strict=True)):
        example = batch.examples[index]
        targets = example.targets
        used = example.input_tokens[:length]
        token_ids[row, : len(used)] = used
        here = slice(start, start + len(rows))
        row_positions[here] = row * length + targets.offset + rows
        target_ids[here] = targets.token_ids[rows]
        target_values[here] = targets.values[rows]
        tail_log_probs[here] = targets.tail_log_probs[rows]
        if targets.old_log_probs is not None:
            old_log_probs[here] = targets.old_log_probs[rows]
        teacher_entropies[here] = targets.teacher_entropies[rows]
        factor = 1.0 / len(rows) if batch.loss.sequence_mean else 1.0
        row_scales[here] = targets.row_weights[rows] * np.float32(factor)
        start += len(rows)
    return MicroBatch(
        token_ids=token_ids,
        row_positions=row_positions,
        target_ids=target_ids,
        target_values=target_values,
        tail_log_probs=tail_log_probs,
        old_log_probs=old_log_probs,
        teacher_entropies=teacher_entropies,
        row_scales=row_scales,
        sources=tuple(zip(indices, rows_of, strict=True)),
    )
