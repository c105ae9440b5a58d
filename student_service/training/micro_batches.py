"""A batch of ragged examples as packs: a few arrays of bucketed shape, with little padding.

Letters: N slots of a pack, R target rows of it, K support size; R is at most N.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from distill.arrays import FloatArray, Int32Array
from distill.engine.packs import Pack, PackWriter, first_fit, slots_within
from distill.rows import Rows
from student_service.training.batch import TrainingBatch

_WHOLE_BYTES = 4 << 20
"""Up to this size, arrays of targets have a row for every slot of the pack: fewer rows would save
less time than the compilation of one more shape costs. Larger arrays have about as many rows as the
micro-batch."""

_SMALLEST_ROWS = 16

Sources: TypeAlias = tuple[tuple[int, Int32Array], ...]
"""For each example of a micro-batch: its index in the batch and its weighted rows."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Arrays of one compiled call. The rows from `weighted_row_count` on are padding."""

    pack: Pack
    """The examples' tokens, [N]."""

    row_slots: Int32Array
    """The slot whose hidden state each weighted target row is about, [R]."""

    target_ids: Int32Array
    """[R, K]."""

    target_values: FloatArray
    """Weights, advantages or log p, [R, K]."""

    tail_log_probs: FloatArray
    """[R]; zeros where the targets have none."""

    old_log_probs: FloatArray
    """[R, K]; zeros where the objective does not use them."""

    row_scales: FloatArray
    """Row weight times the reduction's factor, [R]; 0 in padding."""

    sources: Sources
    """Where the rows come from: those of the first example are the first of the R rows, those of
    the second follow, and so on."""

    @property
    def weighted_row_count(self) -> int:
        """Rows that are not padding."""
        return sum(len(rows) for _, rows in self.sources)


def split_into_micro_batches(batch: TrainingBatch, *, token_budget: int) -> Iterator[MicroBatch]:
    """Pack the examples of a batch. Each pack is made when the iterator is asked for it.

    A sequence is cut after its last weighted row: nothing later can change the loss. Examples
    without a weighted row are left out.

    Args:
        batch: the checked batch.
        token_budget: most tokens in one micro-batch; a longer example is alone in one.
    """
    examples = [
        (index, rows)
        for index, example in enumerate(batch.examples)
        if len(rows := example.weighted_rows)
    ]
    lengths = [batch.examples[index].target_offset + int(rows[-1]) + 1 for index, rows in examples]
    for items in first_fit(lengths, token_budget):
        yield _micro_batch(
            batch, [(*examples[item], lengths[item]) for item in items], token_budget
        )


def _padded_rows(row_count: int, slot_count: int, support_size: int) -> int:
    """R as it is compiled: few sizes, because each costs a compilation."""
    if 4 * slot_count * support_size <= _WHOLE_BYTES:
        return slot_count
    size = _SMALLEST_ROWS
    while size < row_count:
        size *= 4
    return min(size, slot_count)


def _micro_batch(
    batch: TrainingBatch, items: Sequence[tuple[int, Int32Array, int]], token_budget: int
) -> MicroBatch:
    """One pack.

    Args:
        batch: the checked batch.
        items: (index in the batch, weighted rows, tokens up to the last of them) of its examples.
        token_budget: most tokens in one micro-batch.
    """
    token_count = sum(length for _, _, length in items)
    slot_count = slots_within(token_budget, token_count)
    support_size = batch.examples[0].token_ids.shape[1]
    padded_count = _padded_rows(sum(len(rows) for _, rows, _ in items), slot_count, support_size)
    writer = PackWriter(spare_slots=slot_count - token_count)
    row_slots = np.zeros(padded_count, np.int32)
    target_ids = np.zeros((padded_count, support_size), np.int32)
    target_values = np.zeros((padded_count, support_size), np.float32)
    tail_log_probs = np.zeros(padded_count, np.float32)
    old_log_probs = np.zeros((padded_count, support_size), np.float32)
    row_scales = np.zeros(padded_count, np.float32)
    start = 0
    for index, rows, length in items:
        example = batch.examples[index]
        targets = example.targets
        first_slot = writer.add(example.input_tokens[:length])
        here = slice(start, start + len(rows))
        row_slots[here] = first_slot + example.target_offset + rows
        target_ids[here] = example.token_ids[rows]
        target_values[here] = example.values[rows]
        if isinstance(targets, Rows):
            # Where they are absent no objective reads the zeros that stand for them.
            if targets.tail_log_probs is not None:
                tail_log_probs[here] = targets.tail_log_probs[rows]
        elif targets.old_log_probs is not None:
            old_log_probs[here] = targets.old_log_probs[rows]
        factor = 1.0 / len(rows) if batch.loss.sequence_mean else 1.0
        row_scales[here] = example.row_weights[rows] * np.float32(factor)
        start += len(rows)
    return MicroBatch(
        pack=writer.pack(slot_count),
        row_slots=row_slots,
        target_ids=target_ids,
        target_values=target_values,
        tail_log_probs=tail_log_probs,
        old_log_probs=old_log_probs,
        row_scales=row_scales,
        sources=tuple((index, rows) for index, rows, _ in items),
    )
