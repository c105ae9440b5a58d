"""Chunks into targets: tiling, alignment, and every way a chunk can be wrong."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2
from student_service.distributions import assemble_prompts, attach_targets
from student_service.examples import CheckedExample, PromptRows
from tests.student_service.batches import distribution

VOCAB = 40
LIMITS = RequestLimits(max_sequence_tokens=64, max_top_k=8)


def make_chunks(row_count=12, first_row=3, cuts=(), row=0, support_size=4, seed=0):
    """The chunks of one prompt, cut before the given entries, with the arrays they came from."""
    arrays = distribution(np.random.default_rng(seed), row_count, support_size, VOCAB)
    bounds = [0, *cuts, row_count]
    chunks = []
    for start, end in itertools.pairwise(bounds):
        ids, values, tails, entropies = (array[start:end] for array in arrays)
        chunks.append(
            scoring_pb2.TopKChunk(
                row=row,
                position_offset=first_row + start,
                token_ids=encode_int32(ids),
                log_probs=encode_floats(values),
                prompt_log_probs=encode_floats(tails),
                tail_log_probs=encode_floats(tails),
                entropies=encode_floats(entropies),
            )
        )
    return chunks, arrays


def assemble(chunks):
    return assemble_prompts(chunks, LIMITS, VOCAB)


@given(
    cuts=st.sets(st.integers(1, 11)).map(sorted),
    order=st.randoms(use_true_random=False),
)
def test_chunks_join_to_the_rows_they_were_cut_from(cuts, order):
    chunks, (ids, values, tails, entropies) = make_chunks(cuts=cuts)
    others, _ = make_chunks(row=5, seed=1, cuts=cuts)
    mixed = [*chunks, *others]
    order.shuffle(mixed)
    prompt = assemble(mixed)[0]
    assert prompt.first_row == 3
    np.testing.assert_array_equal(prompt.token_ids, ids)
    np.testing.assert_array_equal(prompt.log_probs, values)
    np.testing.assert_array_equal(prompt.tail_log_probs, tails)
    np.testing.assert_array_equal(prompt.entropies, entropies)


@pytest.mark.parametrize("kept", [[0, 2], [0, 1, 1, 2]])
def test_gaps_and_overlaps_are_refused(kept):
    chunks, _ = make_chunks(cuts=(4, 8))
    with pytest.raises(InvalidFieldError, match="tile its rows exactly once"):
        assemble([chunks[index] for index in kept])


def test_different_support_sizes_are_refused():
    with pytest.raises(InvalidFieldError, match=r"K must be 4 .* got 3"):
        assemble(make_chunks()[0] + make_chunks(row=1, support_size=3)[0])


def changed(**fields):
    chunk = make_chunks(row_count=2)[0][0]
    for name, value in fields.items():
        if isinstance(value, int):
            setattr(chunk, name, value)
        else:
            getattr(chunk, name).CopyFrom(value)
    return chunk


GOOD = make_chunks(row_count=2)[1]


def with_value(array, value):
    array = array.copy()
    array.flat[0] = value
    return array


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (changed(row=-1), r"row: must be at least 0"),
        (changed(position_offset=0), r"position_offset: must be at least 1"),
        (changed(token_ids=encode_int32(with_value(GOOD[0], VOCAB))), r"must be in \[0, 40\)"),
        (changed(token_ids=encode_int32(with_value(GOOD[0], -1))), r"must be in \[0, 40\)"),
        (changed(token_ids=encode_int32(np.zeros((2, 4)))), r"name a token twice"),
        (changed(token_ids=encode_int32(GOOD[0][:, :0])), r"K in \[1, 8\]"),
        (changed(token_ids=encode_int32(np.arange(18).reshape(2, 9))), r"K in \[1, 8\]"),
        (changed(token_ids=encode_int32(GOOD[0][0])), r"must have 2 dimensions"),
        (changed(log_probs=encode_floats(GOOD[1][:1])), r"log_probs.shape: must be that of"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], np.nan))), r"log_probs: .*got nan"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], np.inf))), r"log_probs: .*got inf"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], -np.inf))), r"log_probs: .*got -inf"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], 0.01))), r"log_probs: .*at most"),
        (changed(log_probs=encode_floats(GOOD[1] - 2)), r"normalised over the full vocabulary"),
        (changed(tail_log_probs=encode_floats(with_value(GOOD[2], np.nan))), r"tail_log_probs"),
        (changed(tail_log_probs=encode_floats(with_value(GOOD[2], 1.0))), r"tail_log_probs"),
        (changed(tail_log_probs=encode_floats(GOOD[2][:1])), r"tail_log_probs.shape"),
        (changed(entropies=encode_floats(with_value(GOOD[3], np.nan))), r"entropies"),
    ],
)
def test_bad_chunks_are_refused(chunk, message):
    with pytest.raises(InvalidFieldError, match=message):
        assemble([chunk])


def example_of(prompt_offset, row_count, prompt_index=0, target_offset=2):
    return CheckedExample(
        input_tokens=np.arange(30, dtype=np.int32),
        target_offset=target_offset,
        targets=PromptRows(
            prompt_index=prompt_index,
            prompt_offset=prompt_offset,
            row_count=row_count,
            row_weights=np.ones(row_count, np.float32),
        ),
    )


def test_example_gets_the_rows_it_names_whatever_the_prefixes():
    chunks, (ids, values, _, _) = make_chunks(row_count=12, first_row=3)
    (example,) = attach_targets([example_of(7, 5, target_offset=20)], assemble(chunks))
    assert example.targets.offset == 20
    np.testing.assert_array_equal(example.targets.token_ids, ids[4:9])
    np.testing.assert_array_equal(example.targets.values, values[4:9])


@pytest.mark.parametrize(("offset", "count"), [(2, 3), (12, 4), (1, 1), (15, 1)])
def test_rows_that_no_chunk_described_are_refused(offset, count):
    chunks, _ = make_chunks(row_count=12, first_row=3)
    with pytest.raises(InvalidFieldError, match=r"its chunks describe \[3, 15\)"):
        attach_targets([example_of(offset, count)], assemble(chunks))


def test_prompt_that_no_chunk_described_is_refused():
    with pytest.raises(InvalidFieldError, match="no chunk describes prompt 9"):
        attach_targets([example_of(3, 2, prompt_index=9)], assemble(make_chunks()[0]))
