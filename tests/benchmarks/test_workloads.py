import numpy as np
import pytest

from benchmarks.workloads import (
    ragged_lengths,
    scoring_load,
    shared_prefix_load,
    training_load,
)


def test_ragged_lengths_are_log_uniform_and_contain_the_longest():
    lengths = np.array(ragged_lengths(32, shortest=16, longest=1024))
    assert lengths.min() >= 16
    assert lengths.max() == 1024
    # A quarter in each quarter of the six octaves, give or take the one set to the longest.
    counts, _ = np.histogram(np.log2(lengths), bins=4, range=(4, 10))
    assert np.abs(counts - 8).max() <= 1


def test_ragged_lengths_are_the_same_every_time_and_not_sorted():
    lengths = ragged_lengths(32, shortest=16, longest=1024)
    assert lengths == ragged_lengths(32, shortest=16, longest=1024)
    assert list(lengths) != sorted(lengths)


def test_every_row_that_exists_is_wanted_unless_a_share_is_asked_for():
    whole = scoring_load((100, 40), 50, top_k=3)
    assert whole.score_from == (1, 1)
    assert whole.row_count == 99 + 39
    quarter = scoring_load((100, 40), 50, top_k=3, wanted_share=0.25)
    assert quarter.row_count == 25 + 10
    np.testing.assert_array_equal(quarter.prompts[0], whole.prompts[0])


def test_completions_share_their_context_and_nothing_else():
    load = shared_prefix_load(
        context_tokens=30, completion_tokens=5, completions=4, vocab_size=1000, top_k=3
    )
    assert load.token_count == 4 * 35
    assert load.row_count == 4 * 5
    assert len({prompt[:30].tobytes() for prompt in load.prompts}) == 1
    assert len({prompt[30:].tobytes() for prompt in load.prompts}) == 4


@pytest.mark.parametrize("is_hard", [False, True])
def test_targets_are_distributions_or_one_token(is_hard: bool):
    load = training_load((9, 4), 50, top_k=5, is_hard=is_hard)
    for ids, values, tails in zip(
        load.target_ids, load.target_values, load.tail_log_probs, strict=True
    ):
        if is_hard:
            assert ids.shape[1] == 1
            np.testing.assert_array_equal(values, 1)
            continue
        assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
        np.testing.assert_allclose(np.exp(values).sum(1) + np.exp(tails), 1, atol=1e-5)
