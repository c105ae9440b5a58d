"""Scoring on named and sampled supports: which rows they belong to, and what draws depend on."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from distill.arrays import Int32Array
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.supports import Candidates, Draws, Support
from distill.engine.weights import ModelWeights
from distill.models.loading import LoadedModel
from distill.rows import Rows
from tests.distill.ops import reference

VOCAB = 512


@pytest.fixture(scope="module")
def scorer(model: LoadedModel) -> Scorer:
    return Scorer(model)


def tokens(length: int, seed: int = 0) -> Int32Array:
    return np.random.default_rng((seed, length)).integers(0, VOCAB, length).astype(np.int32)


def job(token_ids: Int32Array, support: Support, top_k: int, *, row: int = 0, score_from: int = 1):
    return ScoreJob(
        prompt_index=row,
        token_ids=token_ids,
        score_from=score_from,
        top_k=top_k,
        temperature=1.0,
        support=support,
    )


def random_candidates(row_count: int, top_k: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    ids = [rng.permutation(VOCAB)[:top_k] for _ in range(row_count)]
    return Candidates(token_ids=np.array(ids, np.int32))


NAMES = (
    "token_ids",
    "log_probs",
    "prompt_log_probs",
    "tail_log_probs",
    "entropies",
    "draw_weights",
)


def by_prompt(
    scorer: Scorer, jobs: Sequence[ScoreJob], weights: ModelWeights
) -> dict[int, dict[str, NDArray[np.floating]]]:
    parts: dict[int, list[Rows]] = {each.prompt_index: [] for each in jobs}
    for chunk in scorer.score(jobs, weights):
        parts[chunk.prompt_index].append(chunk)
    names = NAMES if isinstance(jobs[0].support, Draws) else NAMES[:-1]
    return {
        row: {name: np.concatenate([getattr(part, name) for part in each]) for name in names}
        for row, each in parts.items()
    }


@pytest.mark.parametrize("score_from", [1, 150])
def test_row_i_is_scored_on_the_candidates_of_row_i(
    scorer: Scorer,
    weights: ModelWeights,
    dense_logits: Callable[..., NDArray[np.float64]],
    score_from: int,
) -> None:
    token_ids = tokens(300)  # more rows than one call of the head takes
    candidates = random_candidates(300 - score_from, 11)
    each = job(token_ids, candidates, 11, score_from=score_from)
    result = by_prompt(scorer, [each], weights)[0]
    log_probs = reference.log_softmax(dense_logits(token_ids))[score_from - 1 :]
    ids = candidates.token_ids
    np.testing.assert_array_equal(result["token_ids"], ids)
    expected = np.take_along_axis(log_probs, ids.astype(int), -1)
    np.testing.assert_allclose(result["log_probs"], expected, atol=1e-4)
    tail = reference.tail_log_probs(log_probs, ids)
    np.testing.assert_allclose(result["tail_log_probs"], tail, atol=1e-4)
    own = np.take_along_axis(log_probs, token_ids[score_from:, None].astype(int), -1)[:, 0]
    np.testing.assert_allclose(result["prompt_log_probs"], own, atol=1e-4)


@pytest.mark.parametrize("kind", ["candidates", "draws"])
def test_a_prompt_scores_the_same_alone_and_in_a_batch(
    scorer: Scorer, weights: ModelWeights, kind: str
) -> None:
    def support(row_count: int, seed: int) -> Support:
        if kind == "draws":
            return Draws(exact_count=2, seed=5)
        return random_candidates(row_count, 7, seed)

    jobs = [
        job(tokens(length, row), support(length - 1, row), 7, row=row)
        for row, length in enumerate((5, 120, 64, 64, 2, 33, 90))
    ]
    together = by_prompt(scorer, jobs, weights)
    for each in jobs:
        alone = by_prompt(scorer, [each], weights)[each.prompt_index]
        for name, values in together[each.prompt_index].items():
            np.testing.assert_allclose(values, alone[name], atol=1e-5, err_msg=name)


def test_draws_are_a_function_of_seed_prompt_and_row(scorer: Scorer, weights: ModelWeights) -> None:
    token_ids = tokens(80)

    def drawn(ids: Int32Array, *, seed: int = 1, score_from: int = 1) -> NDArray[np.floating]:
        draws = Draws(exact_count=0, seed=seed)
        each = job(ids, draws, 8, score_from=score_from)
        return by_prompt(scorer, [each], weights)[0]["token_ids"]

    first = drawn(token_ids)
    np.testing.assert_array_equal(drawn(token_ids), first)
    np.testing.assert_array_equal(drawn(token_ids, score_from=70), first[69:])
    assert (drawn(token_ids, seed=2) != first).any(-1).all()
    # Another last token: the same distributions in all rows, and other draws.
    other = token_ids.copy()
    other[-1] = (other[-1] + 1) % VOCAB
    assert (drawn(other) != first).any(-1).all()
    # No two rows share their random numbers.
    assert len(np.unique(first, axis=0)) == len(first)


def test_an_exact_head_is_the_top_k_with_its_probabilities_as_weights(
    scorer: Scorer, weights: ModelWeights
) -> None:
    token_ids = tokens(40)
    top = by_prompt(scorer, [job(token_ids, None, 5)], weights)[0]
    headed = by_prompt(scorer, [job(token_ids, Draws(exact_count=5, seed=0), 9)], weights)[0]
    np.testing.assert_array_equal(headed["token_ids"][:, :5], top["token_ids"])
    np.testing.assert_allclose(headed["draw_weights"][:, :5], np.exp(top["log_probs"]), rtol=1e-4)
    np.testing.assert_allclose(headed["draw_weights"].sum(-1), 1.0, atol=1e-5)


def test_warm_supports_compile_nothing(model: LoadedModel, weights: ModelWeights) -> None:
    scorer = Scorer(model)

    def score(seed: int, top_k: int, exact_count: int) -> None:
        by_prompt(scorer, [job(tokens(50, seed), random_candidates(49, top_k), top_k)], weights)
        draws = Draws(exact_count=exact_count, seed=seed)
        by_prompt(scorer, [job(tokens(50, seed), draws, top_k)], weights)

    score(0, 16, 3)
    warm = scorer.compile_count
    score(1, 13, 5)  # the same buckets of K and of the head
    assert scorer.compile_count == warm
