"""Ragged batches into packs of few shapes."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.packs import pack_slots
from student_service.training.micro_batches import split_into_micro_batches
from tests.student_service.batches import batch_of, distribution_example

VOCAB = 50
BUDGET = 256
MAX_LENGTH = 300


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    examples = []
    for _ in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, MAX_LENGTH))
        rows = draw(st.integers(1, length))
        weights = rng.integers(0, 2, rows).astype(np.float32)
        examples.append(
            distribution_example(
                rng,
                length=length,
                offset=draw(st.integers(0, length - rows)),
                row_count=rows,
                vocab_size=VOCAB,
                row_weights=weights,
            )
        )
    return batch_of(examples, sequence_mean=draw(st.booleans()))


@given(batches())
def test_every_weighted_row_appears_once_behind_its_own_prefix_and_nothing_else(batch):
    seen = set()
    for micro_batch in split_into_micro_batches(batch, token_budget=BUDGET):
        segments = micro_batch.pack.segments
        start = 0
        for index, rows in micro_batch.sources:
            example = batch.examples[index]
            for entry, target_row in enumerate(rows, start=start):
                seen.add((index, int(target_row)))
                slot = micro_batch.row_slots[entry]
                visible = micro_batch.pack.token_ids[segments.starts[slot] : slot + 1]
                position = example.target_offset + target_row
                np.testing.assert_array_equal(visible, example.input_tokens[: position + 1])
                assert segments.positions[slot] == position
                assert segments.prefix_starts[slot] == segments.prefix_ends[slot] == 0
                np.testing.assert_array_equal(
                    micro_batch.target_ids[entry], example.token_ids[target_row]
                )
                divisor = len(rows) if batch.loss.sequence_mean else 1
                expected = np.float32(example.row_weights[target_row]) / divisor
                np.testing.assert_allclose(micro_batch.row_scales[entry], expected, rtol=1e-6)
            start += len(rows)
        assert start == micro_batch.weighted_row_count
        assert not micro_batch.row_scales[start:].any()
    expected_rows = {
        (index, int(row))
        for index, example in enumerate(batch.examples)
        for row in np.flatnonzero(example.row_weights)
    }
    assert seen == expected_rows


@given(batches())
def test_packs_stay_within_the_budget_or_hold_one_example(batch):
    for micro_batch in split_into_micro_batches(batch, token_budget=BUDGET):
        slot_count = len(micro_batch.pack.token_ids)
        assert slot_count <= BUDGET or len(micro_batch.sources) == 1
        assert slot_count <= pack_slots(MAX_LENGTH)


def test_arrays_exist_for_one_micro_batch_at_a_time_and_for_the_rows_there_are():
    """48 examples of one weighted row each do not cost 48 packs of supports."""
    rng = np.random.default_rng(0)
    support_size = 2048
    one = distribution_example(
        rng, length=900, offset=899, row_count=1, vocab_size=4096, support_size=support_size
    )
    batch = batch_of([one] * 48)
    tracemalloc.start()
    count = sum(1 for _ in split_into_micro_batches(batch, token_budget=1024))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 48
    support_bytes = 4 * support_size
    assert peak_bytes < 48 * 3 * support_bytes  # less than one row for each example


def test_large_supports_have_few_shapes():
    rng = np.random.default_rng(0)
    shapes = set()
    for row_count in range(1, 600, 25):
        example = distribution_example(
            rng,
            length=600,
            offset=600 - row_count,
            row_count=row_count,
            vocab_size=2048,
            support_size=1500,
        )
        (micro_batch,) = split_into_micro_batches(batch_of([example]), token_budget=1024)
        shapes.add(micro_batch.target_ids.shape[0])
    assert shapes == {16, 64, 256, 768}


def test_examples_longer_than_the_budget_have_the_shapes_of_their_buckets():
    """Not each a shape, and so a program, of its own."""
    rng = np.random.default_rng(0)
    shapes = set()
    for length in range(1025, 2049, 7):
        example = distribution_example(
            rng, length=length, offset=length - 1, row_count=1, vocab_size=VOCAB
        )
        (micro_batch,) = split_into_micro_batches(batch_of([example]), token_budget=1024)
        shapes.add(len(micro_batch.pack.token_ids))
    assert shapes == {1536, 2048}
