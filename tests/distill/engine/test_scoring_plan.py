"""Prompts into packs: each whole, the prefixes that they share only once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.packs import pack_slots
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.scoring_plan import plan_packs
from distill.engine.shared_prefixes import MIN_SHARED_TOKENS

BUDGET = 200
SHARED_PREFIX_BUDGET = 400


def job(row, token_ids):
    return ScoreJob(
        prompt_index=row,
        token_ids=np.asarray(token_ids, np.int32),
        score_from=1,
        top_k=4,
        temperature=1.0,
    )


@st.composite
def prompt_lists(draw):
    """Prompts of which some begin with one of a few contexts."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    contexts = [rng.integers(0, 5, draw(st.integers(0, 150))) for _ in range(3)]
    prompts = []
    for row in range(draw(st.integers(1, 14))):
        own = rng.integers(0, 5, draw(st.integers(2, 60)))
        prompts.append(job(row, [*contexts[draw(st.integers(0, 2))], *own]))
    return prompts


def seen_by(pack, slot):
    """The tokens that a slot sees, in the order of their positions."""
    segments = pack.segments
    prefix = pack.token_ids[segments.prefix_starts[slot] : segments.prefix_ends[slot]]
    return np.concatenate([prefix, pack.token_ids[segments.starts[slot] : slot + 1]])


@given(prompt_lists())
def test_every_row_is_predicted_from_exactly_the_tokens_before_it(prompts):
    found = []
    for planned in plan_packs(prompts, BUDGET, shared_prefix_budget=SHARED_PREFIX_BUDGET):
        for placed in planned.jobs:
            found.append(placed.job)
            tokens = placed.job.token_ids
            rows = np.arange(1, len(tokens), dtype=np.int32)
            for row, slot in zip(rows, placed.slots(rows), strict=True):
                np.testing.assert_array_equal(seen_by(planned.pack, slot), tokens[:row])
                assert planned.pack.segments.positions[slot] == row - 1
    indices = [prompt.prompt_index for prompt in prompts]
    assert sorted(placed.prompt_index for placed in found) == indices


@given(prompt_lists())
def test_only_a_longer_prompt_or_a_shared_prefix_exceeds_the_budget(prompts):
    for planned in plan_packs(prompts, BUDGET, shared_prefix_budget=SHARED_PREFIX_BUDGET):
        slot_count = len(planned.pack.token_ids)
        shares = all(placed.prefix_length for placed in planned.jobs)
        limit = pack_slots(SHARED_PREFIX_BUDGET) if shares else BUDGET
        assert slot_count <= limit or len(planned.jobs) == 1
    for planned in plan_packs(prompts, BUDGET):
        assert len(planned.pack.token_ids) <= BUDGET or len(planned.jobs) == 1


@given(st.integers(MIN_SHARED_TOKENS, 180), st.lists(st.integers(1, 80), min_size=2, max_size=14))
def test_a_larger_pack_for_a_shared_prefix_is_taken_only_where_it_has_less_to_compute(
    shared, own_lengths
):
    # No token is 0, which is what an empty slot holds.
    prompts = [
        job(row, [*[9] * shared, 10 + row, *[1] * own]) for row, own in enumerate(own_lengths)
    ]

    def slots_to_compute(budget):
        """Of a pack within the budget those with a token: others may fill up the rest."""
        planned = plan_packs(prompts, BUDGET, shared_prefix_budget=budget)
        packs = [each.pack.token_ids for each in planned]
        return sum(
            np.count_nonzero(tokens) if len(tokens) <= BUDGET else len(tokens) for tokens in packs
        )

    assert slots_to_compute(SHARED_PREFIX_BUDGET) <= slots_to_compute(BUDGET)


def test_prompts_longer_than_the_budget_have_the_shapes_of_their_buckets():
    """Not each a shape, and so a program, of its own."""
    shapes = set()
    for length in range(BUDGET + 1, 2 * BUDGET + 1):
        (planned,) = plan_packs([job(0, np.zeros(length + 1))], BUDGET)
        shapes.add(len(planned.pack.token_ids))
    assert shapes == {256, 384, 512}


def test_a_shared_prefix_takes_its_slots_once():
    context = np.arange(100)
    prompts = [job(row, [*context, 7, 8, row, 9]) for row in range(8)]
    (planned,) = plan_packs(prompts, BUDGET)
    shared = 100 + 2
    used = shared + 8 * (len(prompts[0].token_ids) - 1 - shared)
    assert (planned.pack.segments.positions[used:] == 0).all()
    assert {placed.prefix_length for placed in planned.jobs} == {shared}


def test_a_group_beyond_the_budget_has_one_pack_where_cutting_it_would_compute_more():
    context = np.arange(100)
    prompts = [job(row, [*context, *([row] * 41)]) for row in range(6)]
    (planned,) = plan_packs(prompts, BUDGET, shared_prefix_budget=SHARED_PREFIX_BUDGET)
    assert len(planned.pack.token_ids) == 384
    assert len(list(plan_packs(prompts, BUDGET))) == 3  # of 180 tokens each


def test_a_group_beyond_the_budget_is_cut_where_a_larger_pack_would_be_padded():
    context = np.arange(33)
    prompts = [job(row, [*context, *([row] * 84)]) for row in range(3)]
    packs = list(plan_packs(prompts, BUDGET, shared_prefix_budget=SHARED_PREFIX_BUDGET))
    assert [len(planned.jobs) for planned in packs] == [2, 1]  # 199 + 116 tokens; one pack has 384


def test_a_group_larger_than_any_pack_computes_its_prefix_once_a_pack():
    context = np.arange(100)
    prompts = [job(row, [*context, *([row] * 41)]) for row in range(21)]
    packs = list(plan_packs(prompts, BUDGET, shared_prefix_budget=SHARED_PREFIX_BUDGET))
    assert [len(planned.jobs) for planned in packs] == [7, 7, 7]
    for planned in packs:
        starts = {(placed.prefix_slot, placed.prefix_length) for placed in planned.jobs}
        assert starts == {(0, 100)}


def test_a_short_prefix_is_not_shared():
    context = np.arange(MIN_SHARED_TOKENS - 1)
    (planned,) = plan_packs([job(row, [*context, row, 3]) for row in range(2)], BUDGET)
    assert {placed.prefix_length for placed in planned.jobs} == {0}


def test_equal_prompts_are_computed_once():
    (planned,) = plan_packs([job(row, np.arange(50)) for row in range(3)], BUDGET)
    assert {placed.prefix_length for placed in planned.jobs} == {49}
