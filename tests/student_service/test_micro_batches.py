"""Ragged batches into few shapes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.ops.head import chunk_row_count
from student_service.micro_batches import MIN_ROWS, row_bucket, split_into_micro_batches
from tests.student_service.batches import batch_of, distribution_example

VOCAB = 50
BUDGET = 256
MAX_LENGTH = 120


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


@settings(deadline=None)
@given(batches())
def test_every_weighted_row_appears_once_with_its_token_and_scale(batch):
    split = split_into_micro_batches(
        batch, token_budget=BUDGET, max_length=MAX_LENGTH, vocab_size=VOCAB
    )
    seen = set()
    for micro_batch in split:
        length = micro_batch.token_ids.shape[1]
        start = 0
        for row, (index, rows) in enumerate(micro_batch.sources):
            example = batch.examples[index]
            targets = example.targets
            for entry, target_row in enumerate(rows, start=start):
                seen.add((index, int(target_row)))
                position = targets.offset + target_row
                assert micro_batch.row_positions[entry] == row * length + position
                prefix = example.input_tokens[: position + 1]
                np.testing.assert_array_equal(micro_batch.token_ids[row, : position + 1], prefix)
                np.testing.assert_array_equal(
                    micro_batch.target_ids[entry], targets.token_ids[target_row]
                )
                divisor = len(rows) if batch.loss.sequence_mean else 1
                expected = np.float32(targets.row_weights[target_row]) / divisor
                np.testing.assert_allclose(micro_batch.row_scales[entry], expected, rtol=1e-6)
            start += len(rows)
        assert not micro_batch.row_scales[start:].any()
    expected_rows = {
        (index, int(row))
        for index, example in enumerate(batch.examples)
        for row in np.flatnonzero(example.targets.row_weights)
    }
    assert seen == expected_rows


@settings(deadline=None)
@given(batches())
def test_micro_batches_stay_within_the_budget_or_hold_one_row(batch):
    for micro_batch in split_into_micro_batches(
        batch, token_budget=BUDGET, max_length=MAX_LENGTH, vocab_size=VOCAB
    ):
        rows, length = micro_batch.token_ids.shape
        assert rows == 1 or rows * length <= BUDGET
        assert length <= MAX_LENGTH


@given(st.integers(1, 5000), st.sampled_from([64, 5000, 49152, 151936]))
def test_row_buckets_hold_the_rows_in_whole_chunks(row_count, vocab_size):
    bucket = row_bucket(row_count, vocab_size)
    assert bucket >= row_count
    assert bucket % chunk_row_count(bucket, vocab_size) == 0
    assert bucket <= max(MIN_ROWS, 2 * row_count)
