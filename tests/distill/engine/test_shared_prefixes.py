"""Which prompts share a prefix, and how much of it."""

import numpy as np
import pytest

from distill.engine.scoring_jobs import ScoreJob
from distill.engine.shared_prefixes import MIN_SHARED_TOKENS, prefix_groups, shared_length


def job(*token_ids: int, row: int = 0) -> ScoreJob:
    return ScoreJob(
        prompt_index=row,
        token_ids=np.array(token_ids, np.int32),
        score_from=1,
        top_k=1,
        temperature=1.0,
    )


def groups_of(*jobs: ScoreJob) -> set[tuple[frozenset[int], int]]:
    """The prompts of each group, and the length of its prefix."""
    return {
        (frozenset(each.prompt_index for each in group.jobs), group.prefix_length)
        for group in prefix_groups(jobs)
    }


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 3),  # the last token is only ever a target
        ([1, 2, 3, 4], [1, 2, 9, 4], 2),
        ([1, 2, 3, 4], [1, 2], 1),
        ([1, 2], [5, 2], 0),
    ],
)
def test_a_shared_prefix_is_of_tokens_that_both_bodies_compute(
    first: list[int], second: list[int], shared: int
) -> None:
    assert shared_length(job(*first), job(*second)) == shared


def test_prompts_are_grouped_in_any_order_and_a_prompt_of_its_own_shares_nothing() -> None:
    prefix = [5] * MIN_SHARED_TOKENS
    first, other, second = (
        job(*prefix, 1, 0, row=0),
        job(*[6] * 40, row=1),
        job(*prefix, 2, 0, row=2),
    )
    expected = {(frozenset({0, 2}), MIN_SHARED_TOKENS), (frozenset({1}), 0)}
    assert groups_of(first, other, second) == groups_of(second, first, other) == expected


def test_a_prompt_joins_no_group_whose_prefix_it_would_shorten_for_less_than_that_saves() -> None:
    long, short = [5] * 200, [5] * 40
    pair = [job(*long, own, 0, row=own) for own in (1, 2)]
    distant = job(*short, 9, 0, row=3)
    assert groups_of(*pair, distant) == {(frozenset({1, 2}), 200), (frozenset({3}), 0)}
