"""A batch of ragged examples as packs: a few arrays of bucketed shape, with little padding.

Letters: N slots of a pack, K support size. A pack has at most as many target rows as slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.engine.packs import Pack, PackWriter, first_fit, slots_within
from distill.ops.objectives import OBJECTIVES
from distill.tensors import FloatArray, Int32Array
from student_service.batch import TrainingBatch


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Arrays of one compiled call. The rows from `weighted_row_count` on are padding."""

    pack: Pack
    """The examples' tokens, [N]."""

    row_slots: Int32Array
    """The slot whose hidden state each weighted target row is about, [N]."""

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
    """Row weight times the reduction's factor, [N]; 0 in padding."""

    sources: tuple[tuple[int, Int32Array], ...]
    """For each example in it: its index in the batch and its weighted rows. Their results lie one
    after the other in the first entries of the N rows."""

    @property
    def weighted_row_count(self) -> int:
        """Rows that are no padding."""
        return sum(len(rows) for _, rows in self.sources)


def split_into_micro_batches(batch: TrainingBatch, *, token_budget: int) -> list[MicroBatch]:
    """Pack the examples of a batch.

    A sequence is cut after its last weighted row: nothing later can change the loss. Examples
    without a weighted row are left out.

    Args:
        batch: the checked batch.
        token_budget: most tokens in one micro-batch; a longer example is alone in one.
    """
    reads_prompts = OBJECTIVES[batch.loss.objective].reads_prompts
    examples = [
        (index, rows)
        for index, example in enumerate(batch.examples)
        if len(rows := example.targets.weighted_rows(reads_prompts))
    ]
    lengths = [batch.examples[index].targets.offset + int(rows[-1]) + 1 for index, rows in examples]
    return [
        _micro_batch(batch, [(*examples[item], lengths[item]) for item in items], token_budget)
        for items in first_fit(lengths, token_budget)
    ]


def _micro_batch(
    batch: TrainingBatch, items: Sequence[tuple[int, Int32Array, int]], token_budget: int
) -> MicroBatch:
    """One pack of (index in the batch, weighted rows, length)."""
    token_count = sum(length for _, _, length in items)
    slot_count = slots_within(token_budget, token_count)
    support_size = batch.examples[0].targets.token_ids.shape[1]
    writer = PackWriter()
    row_slots = np.zeros(slot_count, np.int32)
    target_ids = np.zeros((slot_count, support_size), np.int32)
    target_values = np.zeros((slot_count, support_size), np.float32)
    tail_log_probs = np.zeros(slot_count, np.float32)
    old_log_probs = np.zeros((slot_count, support_size), np.float32)
    teacher_entropies = np.zeros(slot_count, np.float32)
    row_scales = np.zeros(slot_count, np.float32)
    start = 0
    for index, rows, length in items:
        example = batch.examples[index]
        targets = example.targets
        first_slot = writer.add(example.input_tokens[:length])
        here = slice(start, start + len(rows))
        row_slots[here] = first_slot + targets.offset + rows
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
        pack=writer.pack(slot_count),
        row_slots=row_slots,
        target_ids=target_ids,
        target_values=target_values,
        tail_log_probs=tail_log_probs,
        old_log_probs=old_log_probs,
        teacher_entropies=teacher_entropies,
        row_scales=row_scales,
        sources=tuple((index, rows) for index, rows, _ in items),
    )
