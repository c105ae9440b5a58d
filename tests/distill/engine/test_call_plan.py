"""Which jobs share a call: each once, in order, within the budget, and fairly."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.call_plan import CallPlanner, WaitingJobs, portions
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import ModelWeights

WEIGHTS = [ModelWeights({"embedding": index}, adapter=None) for index in range(3)]


def job(length: int, *, seed: int = 0, score_from: int | None = None, row: int = 0) -> ScoreJob:
    """Of `length` tokens that enter the body; another seed shares no prefix with it."""
    generator = np.random.default_rng(seed)
    first, rest = np.array([seed]), generator.integers(0, 2, length)
    return ScoreJob(
        prompt_index=row,
        token_ids=np.concatenate([first, rest]).astype(np.int32),
        score_from=length if score_from is None else score_from,
        top_k=1,
        temperature=1.0,
    )


def continued(prefix: int, own: int, seed: int) -> ScoreJob:
    """A completion of one common prefix."""
    common = np.zeros(prefix, np.int32)
    completion = np.full(own + 1, seed + 1, np.int32)
    return ScoreJob(
        prompt_index=seed,
        token_ids=np.concatenate([common, completion]),
        score_from=prefix,
        top_k=1,
        temperature=1.0,
    )


def bulk(job_count: int, length: int = 10, seed: int = 0) -> list[ScoreJob]:
    return [job(length, seed=1000 * seed + index, row=index) for index in range(job_count)]


def run_all(
    planner: CallPlanner, streams: Sequence[WaitingJobs]
) -> list[dict[int, list[ScoreJob]]]:
    """All calls until nothing waits, each by the index of the stream."""
    calls = []
    while taken := planner.take_call(streams):
        calls.append({streams.index(stream): jobs for stream, jobs in taken})
    return calls


lengths_of_streams = st.lists(
    st.tuples(
        st.integers(0, 2),  # weights
        st.lists(st.tuples(st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=6,
)


@given(drawn=lengths_of_streams, budget=st.integers(1, 120))
def test_every_job_is_scheduled_once_in_order_within_the_budget_and_under_its_weights(
    drawn: list[tuple[int, list[tuple[int, int]]]], budget: int
) -> None:
    planner = CallPlanner(budget)
    jobs = [[job(length, seed=seed) for length, seed in stream] for _, stream in drawn]
    streams = [
        planner.admit(own, WEIGHTS[index]) for own, (index, _) in zip(jobs, drawn, strict=True)
    ]
    costs = {
        id(each): sum(portion.token_count for portion in portions([each], budget))
        for own in jobs
        for each in own
    }
    scheduled: list[list[ScoreJob]] = [[] for _ in streams]
    for call in run_all(planner, streams):
        assert len({drawn[index][0] for index in call}) == 1
        members = [each for own in call.values() for each in own]
        # What jobs add beside others is at most what they add alone.
        added = sum(
            portion.token_count for own in call.values() for portion in portions(own, 10**9)
        )
        assert added <= budget or (len(members) == 1 and costs[id(members[0])] > budget)
        for index, own in call.items():
            scheduled[index] += own
    for own, given_jobs in zip(scheduled, jobs, strict=True):
        assert [id(each) for each in own] == [id(each) for each in given_jobs]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    weights=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    budget=st.integers(40, 200),
)
def test_streams_that_always_have_jobs_get_the_same_share_of_tokens(
    lengths: list[int], weights: list[int], budget: int
) -> None:
    planner = CallPlanner(budget)
    streams = [
        planner.admit(bulk(200, length, seed), WEIGHTS[weights[seed]])
        for seed, length in enumerate(lengths)
    ]
    while all(stream.portions for stream in streams):
        planner.take_call(streams)
        if not all(stream.portions for stream in streams):
            break
        served = [stream.served_tokens for stream in streams]
        assert max(served) - min(served) <= 2 * budget


@given(
    bulk_lengths=st.lists(st.integers(1, 100), min_size=20, max_size=40),
    calls_before=st.integers(1, 8),
    newcomer_length=st.integers(1, 150),
)
def test_beside_a_long_request_a_newcomer_is_in_the_very_next_call(
    bulk_lengths: list[int], calls_before: int, newcomer_length: int
) -> None:
    planner = CallPlanner(100)
    long = planner.admit(
        [job(length, seed=index) for index, length in enumerate(bulk_lengths)], WEIGHTS[0]
    )
    for _ in range(calls_before):
        planner.take_call([long])
    (lone,) = [job(newcomer_length, seed=999)]
    newcomer = planner.admit([lone], WEIGHTS[0])
    taken = dict(planner.take_call([long, newcomer]))
    assert [id(each) for each in taken[newcomer]] == [id(lone)]


def test_a_newcomer_under_other_weights_is_the_very_next_call() -> None:
    planner = CallPlanner(100)
    long = planner.admit(bulk(1000), WEIGHTS[0])
    planner.take_call([long])
    newcomer = planner.admit(bulk(1), WEIGHTS[1])
    assert [stream for stream, _ in planner.take_call([long, newcomer])] == [newcomer]


def test_an_endless_row_of_newcomers_does_not_starve_a_long_request() -> None:
    planner = CallPlanner(100)
    long = planner.admit(bulk(1000), WEIGHTS[0])
    planner.take_call([long])
    served_before = long.served_tokens
    for index in range(40):
        newcomer = planner.admit([job(100, seed=index)], WEIGHTS[0])
        streams = [long, newcomer]
        while newcomer.portions:
            planner.take_call(streams)
    # Half of what was computed.
    assert long.served_tokens - served_before >= 40 * 100 - 200


def test_a_stream_that_took_nothing_for_long_catches_up_by_two_calls_and_no_more() -> None:
    planner = CallPlanner(100)
    lagging, steady = (planner.admit(bulk(1000, seed=seed), WEIGHTS[0]) for seed in range(2))
    for _ in range(50):
        planner.take_call([steady])
    before = steady.served_tokens
    for _ in range(10):
        planner.take_call([lagging, steady])
    assert 100 < lagging.served_tokens - (steady.served_tokens - before) <= 200


def test_room_that_the_first_in_line_does_not_fit_goes_to_others() -> None:
    planner = CallPlanner(100)
    first = planner.admit([job(60), job(60, seed=1)], WEIGHTS[0])
    second = planner.admit([job(10, seed=index + 2) for index in range(9)], WEIGHTS[0])
    calls = run_all(planner, [first, second])
    assert [{index: len(jobs) for index, jobs in call.items()} for call in calls] == [
        {0: 1, 1: 4},
        {0: 1, 1: 4},
        {1: 1},
    ]


def test_small_jobs_that_fit_the_room_left_do_not_get_ahead_of_large_ones_for_good() -> None:
    planner = CallPlanner(40)
    small, *large = (
        planner.admit(bulk(1000, length, seed), WEIGHTS[0])
        for seed, length in enumerate((1, 21, 21))
    )
    for _ in range(50):
        planner.take_call([small, *large])
    assert all(stream.portions for stream in (small, *large))
    assert small.served_tokens - min(stream.served_tokens for stream in large) <= 80


def test_a_job_larger_than_the_budget_is_a_call_of_its_own() -> None:
    planner = CallPlanner(100)
    streams = [
        planner.admit([job(500)], WEIGHTS[0]),
        planner.admit(bulk(3, seed=1), WEIGHTS[0]),
    ]
    calls = run_all(planner, streams)
    assert [{index: len(jobs) for index, jobs in call.items()} for call in calls] == [
        {0: 1},
        {1: 3},
    ]


def test_a_shared_prefix_counts_once_and_stays_together() -> None:
    group = [continued(80, 5, seed) for seed in range(8)]
    (portion,) = portions(group, 200)
    # The first computes 85 tokens; each of the others adds its own 5 and its 6 rows of the head.
    assert portion.token_count == 85 + 7 * 6
    planner = CallPlanner(200)
    streams = [
        planner.admit([*bulk(3, 40, seed=1), *group], WEIGHTS[0]),
        planner.admit(bulk(10, 40, seed=2), WEIGHTS[0]),
    ]
    together = [
        {each.prompt_index for each in call.get(0, []) if len(each.token_ids) == 86}
        for call in run_all(planner, streams)
    ]
    assert [rows for rows in together if rows] == [set(range(8))]


def test_a_scorer_that_shares_no_prefix_is_given_each_job_at_its_own_cost() -> None:
    same = [job(50, seed=3) for _ in range(3)]
    cut = portions(same, 200, shares_prefixes=False)
    assert [(portion.jobs, portion.token_count) for portion in cut] == [
        ((each,), portions([each], 200)[0].token_count) for each in same
    ]
    assert len(portions(same, 200)) == 1


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_jobs_that_are_put_back_cost_what_they_cost_at_first(shares_prefixes: bool) -> None:
    planner = CallPlanner(200, shares_prefixes=shares_prefixes)
    stream = planner.admit([job(50, seed=3, row=row) for row in range(3)], WEIGHTS[0])
    cost = stream.token_count
    ((_, taken),) = planner.take_call([stream])
    assert not stream.portions
    planner.put_back(stream, taken)
    assert stream.token_count == cost
    assert [each.prompt_index for portion in stream.portions for each in portion.jobs] == [0, 1, 2]


def test_a_group_that_exceeds_the_budget_is_cut_and_its_prefix_counted_in_each_part() -> None:
    group = [continued(80, 5, seed) for seed in range(8)]
    cut = portions(group, 100)
    assert [len(portion.jobs) for portion in cut] == [3, 3, 2]
    assert [portion.token_count for portion in cut] == [97, 97, 91]


def test_rows_of_the_head_count_where_they_are_more_than_the_tokens_of_the_body() -> None:
    whole = [continued(80, 5, seed) for seed in range(2)]
    all_rows = [
        ScoreJob(prompt_index=0, token_ids=each.token_ids, score_from=1, top_k=1, temperature=1.0)
        for each in whole
    ]
    assert [portion.token_count for portion in portions(all_rows, 1000)] == [85, 85]
