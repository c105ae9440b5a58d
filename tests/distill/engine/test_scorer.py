"""Scoring: what is computed, in which chunks, and under which weights."""

from collections import Counter
from collections.abc import Callable, Iterable

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.arrays import Int32Array
from distill.engine.device_queue import DeviceQueue
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.scoring_plan import plan_packs
from distill.engine.weights import ModelWeights
from distill.models.loading import LoadedModel
from distill.network.adapters import LoraSpec, init_adapter, model_targets
from distill.rows import Rows

DenseLogits = Callable[..., NDArray[np.float64]]


@pytest.fixture(scope="module")
def scorer(model: LoadedModel) -> Scorer:
    return Scorer(model)


def tokens(model: LoadedModel, length: int, seed: int = 0) -> Int32Array:
    generator = np.random.default_rng((seed, length))
    return generator.integers(0, model.config.vocab_size, length).astype(np.int32)


def job(
    token_ids: Int32Array,
    *,
    row: int = 0,
    score_from: int = 1,
    top_k: int = 5,
    temperature: float = 1.0,
) -> ScoreJob:
    return ScoreJob(
        prompt_index=row,
        token_ids=token_ids,
        score_from=score_from,
        top_k=top_k,
        temperature=temperature,
    )


def joined(chunks: Iterable[Rows]) -> dict[str, NDArray[np.floating]]:
    """The chunks of one prompt as one."""
    parts = list(chunks)
    names = ("token_ids", "log_probs", "prompt_log_probs", "tail_log_probs", "entropies")
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("length", [2, 17, 300])
def test_row_i_is_the_distribution_over_token_i_given_those_before(
    scorer: Scorer,
    model: LoadedModel,
    weights: ModelWeights,
    dense_logits: DenseLogits,
    length: int,
    temperature: float,
) -> None:
    token_ids = tokens(model, length)
    result = joined(scorer.score([job(token_ids, temperature=temperature)], weights))
    log_probs = log_softmax(dense_logits(token_ids) / temperature)
    expected = -np.sort(-log_probs, axis=-1)
    own = log_probs[np.arange(length - 1), token_ids[1:]]
    np.testing.assert_allclose(result["log_probs"], expected[:, :5], atol=1e-4)
    np.testing.assert_allclose(result["prompt_log_probs"], own, atol=1e-4)
    tails = np.logaddexp.reduce(expected[:, 5:], axis=-1)
    np.testing.assert_allclose(result["tail_log_probs"], tails, atol=1e-4)
    at_support = np.take_along_axis(log_probs, result["token_ids"].astype(int), -1)
    np.testing.assert_allclose(at_support, expected[:, :5], atol=1e-4)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_chunks_tile_the_requested_rows_exactly_once(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(2, 200), min_size=1, max_size=9))
    top_k = data.draw(st.sampled_from([1, 20, 512]))
    jobs = [
        job(
            tokens(model, length, row),
            row=row,
            score_from=data.draw(st.integers(1, length - 1)),
            top_k=top_k,
        )
        for row, length in enumerate(lengths)
    ]
    head_rows_before = scorer.head_rows_computed
    next_row = {each.prompt_index: each.score_from for each in jobs}
    for chunk in scorer.score(jobs, weights):
        row_count = len(chunk.prompt_log_probs)
        # "The chunks of a prompt arrive in order and tile the requested rows exactly once."
        assert chunk.first_row == next_row[chunk.prompt_index]
        next_row[chunk.prompt_index] += row_count
        assert row_count >= 1
        assert chunk.token_ids.shape == chunk.log_probs.shape == (row_count, top_k)
        assert chunk.tail_log_probs.shape == chunk.entropies.shape == (row_count,)
        assert chunk.token_ids.nbytes + chunk.log_probs.nbytes <= 256 << 10
    assert next_row == {each.prompt_index: len(each.token_ids) for each in jobs}
    # "Only the rows in [score_from, T) cost head compute."
    wanted = sum(len(each.token_ids) - each.score_from for each in jobs)
    assert scorer.head_rows_computed - head_rows_before == wanted


def test_a_prompt_scores_the_same_alone_and_in_a_batch(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    jobs = [
        job(tokens(model, length, row), row=row)
        for row, length in enumerate((5, 120, 64, 64, 2, 33, 90))
    ]
    together: dict[int, list[Rows]] = {each.prompt_index: [] for each in jobs}
    for chunk in scorer.score(jobs, weights):
        together[chunk.prompt_index].append(chunk)
    for each in jobs:
        alone = joined(scorer.score([each], weights))
        for name, values in joined(together[each.prompt_index]).items():
            np.testing.assert_allclose(values, alone[name], atol=1e-5, err_msg=name)


def test_score_from_changes_no_row(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    token_ids = tokens(model, 150)
    whole = joined(scorer.score([job(token_ids)], weights))
    part = joined(scorer.score([job(token_ids, score_from=140)], weights))
    for name, values in part.items():
        np.testing.assert_allclose(values, whole[name][-10:], atol=1e-5, err_msg=name)


def test_full_support_is_the_whole_distribution(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    vocab_size = model.config.vocab_size
    result = joined(scorer.score([job(tokens(model, 40), top_k=vocab_size)], weights))
    assert (np.sort(result["token_ids"], -1) == np.arange(vocab_size)).all()
    np.testing.assert_allclose(np.exp(result["log_probs"]).sum(-1), 1, atol=1e-5)
    assert (result["tail_log_probs"] == -np.inf).all()


def test_an_adapter_changes_the_scores_as_it_changes_the_model(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights, dense_logits: DenseLogits
) -> None:
    spec = LoraSpec(rank=3, alpha=6.0, target_modules=model_targets(model.config), seed=1)
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, init_adapter(model.config, spec, np.float32))
    token_ids = tokens(model, 30)
    adapted = joined(scorer.score([job(token_ids)], ModelWeights(model.parameters, adapter)))
    base = joined(scorer.score([job(token_ids)], weights))
    expected = -np.sort(-log_softmax(dense_logits(token_ids, adapter)), axis=-1)[:, :5]
    np.testing.assert_allclose(adapted["log_probs"], expected, atol=1e-4)
    assert np.abs(adapted["log_probs"] - base["log_probs"]).max() > 0.01


def test_a_shared_prefix_is_computed_once_and_changes_nothing(
    model: LoadedModel, weights: ModelWeights
) -> None:
    scorer = Scorer(model)
    context = tokens(model, 40, seed=1)
    prompts = [np.concatenate([context, tokens(model, 9, seed=2 + row)]) for row in range(4)]
    jobs = [job(prompt, row=row, score_from=38) for row, prompt in enumerate(prompts)]
    together: dict[int, list[Rows]] = {}
    for scored, chunk in filter(None, scorer.score_jobs(jobs, weights)):
        together.setdefault(scored.prompt_index, []).append(chunk)
    assert scorer.body_tokens_computed == 40 + 4 * 8
    for row, scored in enumerate(jobs):
        alone, shared = joined(scorer.score([scored], weights)), joined(together[row])
        np.testing.assert_array_equal(shared["token_ids"], alone["token_ids"])
        np.testing.assert_allclose(shared["log_probs"], alone["log_probs"], atol=1e-5)


def test_a_call_may_mix_k_temperatures_and_lengths(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    jobs = [
        job(tokens(model, 12 + 7 * row), row=row, top_k=1 + 4 * row, temperature=0.5 + row)
        for row in range(5)
    ]
    found: dict[int, list[Rows]] = {}
    for scored, chunk in filter(None, scorer.score_jobs(jobs, weights)):
        found.setdefault(scored.prompt_index, []).append(chunk)
    for row, scored in enumerate(jobs):
        alone, mixed = joined(scorer.score([scored], weights)), joined(found[row])
        assert mixed["token_ids"].shape == (len(scored.token_ids) - 1, scored.top_k)
        np.testing.assert_allclose(mixed["log_probs"], alone["log_probs"], atol=1e-5)


def test_warm_shapes_compile_nothing(model: LoadedModel, weights: ModelWeights) -> None:
    scorer = Scorer(model)

    def score(length: int, seed: int, top_k: int, temperature: float) -> None:
        jobs = [
            job(tokens(model, length, seed + row), row=row, top_k=top_k, temperature=temperature)
            for row in range(3)
        ]
        list(scorer.score(jobs, weights))

    score(50, 0, 20, 1.0)
    warm = scorer.compile_count
    assert warm > 0
    score(50, 7, 20, 1.0)
    score(52, 7, 17, 0.3)  # same buckets of length and K; the temperature is an argument
    assert scorer.compile_count == warm
    score(50, 7, 200, 1.0)
    assert scorer.compile_count > warm


def test_a_cancelled_stream_computes_no_further_rows(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    queue = DeviceQueue()
    jobs = [job(tokens(model, 500, row), row=row, top_k=512) for row in range(4)]
    rows_before = scorer.head_rows_computed
    with queue.stream(scorer.score(jobs, weights), in_flight_limit=1) as stream:
        next(stream)
    queue.close()
    # One piece was read, and at most two more were under way.
    assert scorer.head_rows_computed - rows_before <= 3 * 128
    assert stream.pieces_run <= 3


def test_jobs_that_are_not_wanted_any_more_cost_neither_body_nor_head(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    length = 200
    jobs = [job(tokens(model, length, seed=row), row=row) for row in range(7)]
    packs = [
        [placed.job.prompt_index for placed in planned.jobs]
        for planned in plan_packs(jobs, scorer.token_budget)
    ]
    assert [len(rows) for rows in packs] == [5, 2]
    kept = {packs[0][0], packs[1][0]}
    wanted = set(range(7))
    before = scorer.body_tokens_computed, scorer.head_rows_computed
    row_counts: Counter[int] = Counter()
    for scored in filter(
        None, scorer.score_jobs(jobs, weights, lambda each: each.prompt_index in wanted)
    ):
        row_counts[scored[0].prompt_index] += len(scored[1].prompt_log_probs)
        wanted.intersection_update(kept)
    assert row_counts == dict.fromkeys(kept, length - 1)
    # The body of the first pack was computed by then, and a call of the head.
    assert scorer.body_tokens_computed - before[0] == (5 + 1) * (length - 1)
    assert scorer.head_rows_computed - before[1] <= 2 * (length - 1) + 256


@pytest.mark.parametrize("top_k", [5, 8, 512])
def test_a_chunk_that_is_kept_keeps_nothing_else(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights, top_k: int
) -> None:
    """Neither the padding of the call nor the rows of others."""
    jobs = [job(tokens(model, 100, seed=row), row=row, top_k=top_k) for row in range(3)]
    for chunk in scorer.score(jobs, weights):
        for array in (chunk.token_ids, chunk.log_probs, chunk.prompt_log_probs, chunk.entropies):
            owner = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            assert owner.nbytes == array.nbytes


def test_the_longest_sequence_is_scored(
    scorer: Scorer, model: LoadedModel, weights: ModelWeights
) -> None:
    length = model.config.max_position_count
    result = joined(scorer.score([job(tokens(model, length), score_from=length - 1)], weights))
    assert result["log_probs"].shape == (1, 5)
    assert np.isfinite(result["log_probs"]).all()
