"""The scheduler with the real scorer on the tiny model."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from distill.engine.device_queue import DeviceQueue
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.engine.supports import Candidates, Draws, Support
from distill.engine.weights import ModelWeights
from distill.models.loading import LoadedModel
from distill.network.adapters import ADAPTER_TARGETS, LoraSpec, init_adapter
from distill.rows import Rows
from tests.distill.engine.gate import Gate
from tests.support.waiting import wait_until

COMPILE_SECONDS = 120.0
"""Longest wait for an answer that may need new shapes."""

Found = dict[tuple[int, int], tuple[np.ndarray, ...]]


@pytest.fixture(scope="module")
def scorer(model: LoadedModel) -> Scorer:
    return Scorer(model)


def request(model: LoadedModel, client: int) -> list[ScoreJob]:
    """Prompts of a client, of several lengths; every client has its own K and kind of support."""
    generator = np.random.default_rng(client)
    jobs = []
    for row in range(3):
        length = int(generator.integers(2, 90))
        score_from = int(generator.integers(1, length))
        top_k = 3 + client % 3
        support: Support = None
        if client % 4 == 1:
            support = Draws(exact_count=2, seed=client)
        elif client % 4 == 2:
            order = generator.permuted(
                np.tile(np.arange(512, dtype=np.int32), (length - score_from, 1)), axis=1
            )
            support = Candidates(token_ids=order[:, :top_k])
        jobs.append(
            ScoreJob(
                prompt_index=row,
                token_ids=generator.integers(0, model.config.vocab_size, length).astype(np.int32),
                score_from=score_from,
                top_k=top_k,
                temperature=1.0 + client / 8,
                support=support,
            )
        )
    return jobs


def rows_of(chunks: Iterable[Rows]) -> Found:
    """What is said of each row, by prompt and position; every row once."""
    rows: Found = {}
    for chunk in chunks:
        fields = (
            chunk.token_ids,
            chunk.log_probs,
            chunk.prompt_log_probs,
            chunk.tail_log_probs,
            chunk.entropies,
            *(() if chunk.draw_weights is None else (chunk.draw_weights,)),
        )
        for index in range(len(chunk.prompt_log_probs)):
            key = chunk.prompt_index, chunk.first_row + index
            assert key not in rows
            rows[key] = tuple(array[index] for array in fields)
    return rows


def assert_same(rows: Found, expected: Found) -> None:
    assert rows.keys() == expected.keys()
    for key, (token_ids, *values) in rows.items():
        expected_ids, *expected_values = expected[key]
        np.testing.assert_array_equal(token_ids, expected_ids)
        assert len(values) == len(expected_values)
        for value, other in zip(values, expected_values, strict=True):
            np.testing.assert_allclose(value, other, atol=1e-5, rtol=1e-5)


def test_concurrent_streams_get_what_they_get_alone_in_fewer_calls(
    model: LoadedModel, scorer: Scorer, weights: ModelWeights, queue: DeviceQueue
) -> None:
    requests = [request(model, client) for client in range(8)]
    alone = [rows_of(scorer.score(jobs, weights)) for jobs in requests]
    scheduler = ScoringScheduler(queue, scorer, token_budget=1024)

    def score(jobs: Sequence[ScoreJob]) -> Found:
        return rows_of(scheduler.score(jobs, weights, timeout_seconds=COMPILE_SECONDS))

    gate = Gate(queue)
    with ThreadPoolExecutor(8) as pool:
        together = [pool.submit(score, jobs) for jobs in requests]
        wait_until(lambda: len(scheduler._streams) == len(requests))
        gate.open()
        for future, expected in zip(together, alone, strict=True):
            assert_same(future.result(), expected)
    assert scheduler.call_count < len(requests)


@pytest.mark.parametrize("client", range(3))
def test_the_rest_of_a_job_is_scored_as_in_the_whole(
    model: LoadedModel, scorer: Scorer, weights: ModelWeights, client: int
) -> None:
    """Of every kind of support: what is taken out of a call and put back later loses nothing."""
    jobs = request(model, client)
    chunks = list(scorer.score(jobs, weights))
    assert {chunk.most_probable for chunk in chunks} == {jobs[0].support is None}
    whole = rows_of(chunks)
    middles = [(job.score_from + len(job.token_ids)) // 2 for job in jobs]
    rest = [job.from_row(row) for job, row in zip(jobs, middles, strict=True)]
    expected = {key: fields for key, fields in whole.items() if key[1] >= middles[key[0]]}
    assert_same(rows_of(scorer.score(rest, weights)), expected)


def test_streams_under_two_adapters_get_what_they_get_alone(
    model: LoadedModel, scorer: Scorer, queue: DeviceQueue
) -> None:
    adapters = [
        jax.tree.map(
            lambda leaf: leaf + 0.05,
            init_adapter(
                model.config,
                LoraSpec(rank=3, alpha=6.0, target_modules=ADAPTER_TARGETS, seed=seed),
                np.float32,
            ),
        )
        for seed in range(2)
    ]
    under = [ModelWeights(model.parameters, adapters[client % 2]) for client in range(4)]
    jobs = request(model, 0)
    alone = [rows_of(scorer.score(jobs, weights)) for weights in under]
    scheduler = ScoringScheduler(queue, scorer, token_budget=1024)
    gate = Gate(queue)
    streams = [scheduler.score(jobs, weights, timeout_seconds=COMPILE_SECONDS) for weights in under]
    gate.open()
    for stream, expected in zip(streams, alone, strict=True):
        assert_same(rows_of(stream), expected)
    assert scheduler.call_count == 2  # the two of each adapter together
