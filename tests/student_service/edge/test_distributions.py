"""Chunks into targets: tiling, alignment, and every way a chunk can be wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2
from student_service.edge.distributions import assemble_prompts, attach_targets
from student_service.edge.examples import CheckedExample, PromptRows
from tests.student_service.messages import VOCAB_SIZE, make_chunks

LIMITS = RequestLimits(max_sequence_tokens=64, max_top_k=8)


def assemble(chunks, objective="tail_bucket"):
    return assemble_prompts(chunks, LIMITS, VOCAB_SIZE, OBJECTIVES[objective])


def sampled_chunk(ids=((3, 7, 3, 9), (5, 5, 5, 5)), weights=((0.5, 0.25, 0, 0.25), (1, 0, 0, 0))):
    """Repeated draws in unused slots; every token has probability 0.1."""
    ids = np.array(ids, np.int32)
    named = np.array([len(set(row)) for row in ids.tolist()])
    return scoring_pb2.TopKChunk(
        first_row=1,
        token_ids=encode_int32(ids),
        log_probs=encode_floats(np.full(ids.shape, np.log(0.1))),
        prompt_log_probs=encode_floats(np.zeros(len(ids))),
        tail_log_probs=encode_floats(np.log1p(-0.1 * named)),
        entropies=encode_floats(np.ones(len(ids))),
        draw_weights=encode_floats(np.array(weights, np.float32)),
    )


def test_repeated_ids_of_a_sampled_support_are_fine_in_slots_of_weight_zero():
    chunk = sampled_chunk()
    prompts = assemble([chunk], "sampled")
    (example,) = attach_targets([example_of(1, 2)], prompts)
    np.testing.assert_array_equal(example.values, [[0.5, 0.25, 0, 0.25], [1, 0, 0, 0]])
    np.testing.assert_array_equal(example.targets.token_ids[1], [5, 5, 5, 5])


def test_rows_are_of_the_most_probable_tokens_only_where_every_chunk_says_so():
    chunks, _ = make_chunks(row_count=12, first_row=1, cuts=(5,))
    chunks[1].most_probable = True
    (example,) = attach_targets([example_of(3, 8)], assemble(chunks))
    assert not example.targets.most_probable
    chunks[0].most_probable = True
    (example,) = attach_targets([example_of(3, 8)], assemble(chunks))
    assert example.targets.most_probable


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((0.5, 0.25, 0.25, 0), (1, 0, 0, 0)), r"token_ids: a row must not name a token twice"),
        (((0.5, 0.25, 0, 0.5), (1, 0, 0, 0)), r"weights: .* add up to 1 within 0.01, got 1.25"),
        (((0.5, 0.25, 0, 0.25), (0, 0, 0, 0)), r"weights: .* add up to 1 within 0.01, got 0"),
        (((1.5, -0.5, 0, 0), (1, 0, 0, 0)), r"weights: .*at least 0, got -0.5"),
        (((np.nan, 0.5, 0, 0.5), (1, 0, 0, 0)), r"weights: must be finite.*got nan"),
        (((np.inf, 0.5, 0, 0.5), (1, 0, 0, 0)), r"weights: must be finite.*got inf"),
        (((0.5, 0.5), (1, 0)), r"weights.shape: must be .*\[2, 4\], got \[2, 2\]"),
        ((1.0, 1.0), r"weights.shape: must have 2 dimensions"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(InvalidFieldError, match=message):
        assemble([sampled_chunk(weights=weights)], "sampled")


def test_weights_come_with_the_objective_that_needs_them_and_with_no_other():
    chunks, _ = make_chunks()
    with pytest.raises(
        InvalidFieldError, match=r"weights: must be given for the objective sampled"
    ):
        assemble(chunks, "sampled")
    for name, spec in OBJECTIVES.items():
        if spec.needs_distribution:
            assert assemble(chunks, name)
            with pytest.raises(InvalidFieldError, match=f"weights: .*the objective {name} needs"):
                assemble([sampled_chunk()], name)


def test_a_tail_of_nothing_is_refused_where_the_student_could_reach_it():
    ids = np.arange(4)[None]
    log_probs = np.log(np.full((1, 4), 0.25))
    chunk = changed(
        token_ids=encode_int32(ids),
        log_probs=encode_floats(log_probs),
        prompt_log_probs=encode_floats(np.zeros(1)),
        tail_log_probs=encode_floats(np.array([-np.inf])),
        entropies=encode_floats(np.ones(1)),
    )
    for name, spec in OBJECTIVES.items():
        if spec.needs_teacher_tail:
            with pytest.raises(
                InvalidFieldError, match=f"tail_log_probs: .* {name} and K below 40"
            ):
                assemble([chunk], name)
            # With K = V there is nothing to reach.
            assert assemble_prompts([chunk], LIMITS, 4, spec)
        elif spec.needs_distribution:
            assert assemble([chunk], name)


def test_a_tail_beside_the_whole_vocabulary_is_refused_before_the_student_pays_for_it():
    for tail in (-40.0, -17.0):
        chunk = changed(
            token_ids=encode_int32(np.arange(4)[None]),
            log_probs=encode_floats(np.log(np.full((1, 4), 0.25))),
            prompt_log_probs=encode_floats(np.zeros(1)),
            tail_log_probs=encode_floats(np.array([tail])),
            entropies=encode_floats(np.ones(1)),
        )
        for spec in OBJECTIVES.values():
            if spec.needs_distribution:
                with pytest.raises(
                    InvalidFieldError, match=rf"tail_log_probs: must be -inf with K = 4.*got {tail}"
                ):
                    assemble_prompts([chunk], LIMITS, 4, spec)


positive = st.floats(0, 2, width=32)


@given(
    ids=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=2, max_size=2),
    weights=st.lists(st.lists(positive, min_size=4, max_size=4), min_size=2, max_size=2),
)
def test_any_sampled_chunk_is_refused_or_names_each_weighted_token_once(ids, weights):
    normalized = np.array(weights, np.float32)
    normalized /= np.maximum(normalized.sum(-1, keepdims=True), 1e-3)
    chunk = sampled_chunk(ids, normalized)
    # The tail that fits the weighted slots, so that only ids and weights decide.
    named = (normalized > 0).sum(-1)
    chunk.tail_log_probs.CopyFrom(encode_floats(np.log1p(-0.1 * named)))
    try:
        prompt = assemble([chunk], "sampled")[0]
    except InvalidFieldError:
        return
    assert prompt.draw_weights is not None
    for row, row_weights in zip(prompt.token_ids, prompt.draw_weights, strict=True):
        weighted = row[row_weights > 0]
        assert len(weighted) == len(set(weighted.tolist())) > 0


@given(
    cuts=st.sets(st.integers(1, 11)).map(sorted),
    order=st.randoms(use_true_random=False),
)
def test_chunks_join_to_the_rows_they_were_cut_from(cuts, order):
    chunks, (ids, values, tails, entropies) = make_chunks(cuts=cuts)
    others, _ = make_chunks(prompt_index=5, seed=1, cuts=cuts)
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
    with pytest.raises(InvalidFieldError, match="must be tiled exactly once"):
        assemble([chunks[index] for index in kept])


def test_different_support_sizes_are_refused():
    with pytest.raises(InvalidFieldError, match=r"K must be 4 .* got 3"):
        assemble(make_chunks()[0] + make_chunks(prompt_index=1, support_size=3)[0])


def changed(**fields):
    chunk = make_chunks(row_count=2)[0][0]
    for name, value in fields.items():
        if isinstance(value, int):
            setattr(chunk, name, value)
        else:
            getattr(chunk, name).CopyFrom(value)
    return chunk


def of_support(token_ids):
    """A chunk with other tokens, and an array of their shape beside them."""
    return changed(
        token_ids=encode_int32(token_ids), log_probs=encode_floats(np.full(token_ids.shape, -2.0))
    )


GOOD = make_chunks(row_count=2)[1]


def with_value(array, value):
    array = array.copy()
    array.flat[0] = value
    return array


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (changed(prompt_index=-1), r"prompt_index: must be at least 0"),
        (changed(first_row=0), r"first_row: must be at least 1"),
        (changed(token_ids=encode_int32(with_value(GOOD[0], VOCAB_SIZE))), r"must be in \[0, 40\)"),
        (changed(token_ids=encode_int32(with_value(GOOD[0], -1))), r"must be in \[0, 40\)"),
        (changed(token_ids=encode_int32(np.full((2, 4), 7))), r"name a token twice, got 7 again"),
        (of_support(GOOD[0][:, :0]), r"K in \[1, 8\]"),
        (of_support(np.arange(18).reshape(2, 9)), r"K in \[1, 8\]"),
        (changed(token_ids=encode_int32(GOOD[0][0])), r"must have 2 dimensions"),
        (changed(log_probs=encode_floats(GOOD[1][:1])), r"log_probs.shape: must be \[2, 4\] with"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], np.nan))), r"log_probs: .*got nan"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], np.inf))), r"log_probs: .*got inf"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], -np.inf))), r"log_probs: .*got -inf"),
        (changed(log_probs=encode_floats(with_value(GOOD[1], 0.01))), r"log_probs: .*at most"),
        (changed(log_probs=encode_floats(GOOD[1] - 2)), r"normalised over the full vocabulary"),
        (changed(tail_log_probs=encode_floats(with_value(GOOD[2], np.nan))), r"tail_log_probs"),
        (changed(tail_log_probs=encode_floats(with_value(GOOD[2], 1.0))), r"tail_log_probs"),
        (changed(tail_log_probs=encode_floats(GOOD[2][:1])), r"tail_log_probs.shape"),
        (
            changed(entropies=encode_floats(with_value(GOOD[3], np.nan))),
            r"entropies: must be finite, got nan",
        ),
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
        ),
        row_weights=np.ones(row_count, np.float32),
    )


def test_example_gets_the_rows_it_names_whatever_the_prefixes():
    chunks, (ids, values, _, _) = make_chunks(row_count=12, first_row=3)
    (example,) = attach_targets([example_of(7, 5, target_offset=20)], assemble(chunks))
    assert example.target_offset == 20
    np.testing.assert_array_equal(example.targets.token_ids, ids[4:9])
    np.testing.assert_array_equal(example.targets.log_probs, values[4:9])


@pytest.mark.parametrize(("offset", "count"), [(2, 3), (12, 4), (1, 1), (15, 1)])
def test_rows_that_no_chunk_described_are_refused(offset, count):
    chunks, _ = make_chunks(row_count=12, first_row=3)
    with pytest.raises(InvalidFieldError, match=r"its chunks describe \[3, 15\)"):
        attach_targets([example_of(offset, count)], assemble(chunks))


def test_prompt_that_no_chunk_described_is_refused():
    with pytest.raises(InvalidFieldError, match="no chunk describes prompt 9"):
        attach_targets([example_of(3, 2, prompt_index=9)], assemble(make_chunks()[0]))
