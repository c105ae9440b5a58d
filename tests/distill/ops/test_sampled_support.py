"""Named and sampled supports against float64, and the laws of the draws' weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.logits import Head
from distill.ops.objectives import OBJECTIVES, ObjectiveParameters, StudentRows, TargetRows
from distill.ops.sampled_support import DRAW_BLOCK, candidate_rows, sampled_rows
from tests.distill.ops import reference

compiled_candidates = jax.jit(candidate_rows)
compiled_draws = jax.jit(sampled_rows, static_argnames=("slot_count", "head_slot_count"))


def head_arguments(logits, sizes, temperature=1.0):
    """Given logits: with D = V and the identity as the kernel they pass through."""
    row_count, vocab_size = logits.shape
    return (
        jnp.asarray(logits, jnp.float32),
        Head(jnp.eye(vocab_size)),
        jnp.arange(row_count, dtype=jnp.int32) % vocab_size,
        jnp.full(row_count, temperature, jnp.float32),
        jnp.broadcast_to(jnp.asarray(sizes, jnp.int32), row_count),
    )


def score_candidates(logits, ids, *, sizes=None, temperature=1.0):
    sizes = ids.shape[1] if sizes is None else sizes
    return compiled_candidates(
        head_arguments(logits, sizes, temperature)[0],
        *head_arguments(logits, sizes, temperature)[1:],
        jnp.asarray(ids, jnp.int32),
    )


def draw(logits, *, size, exact=0, seed=0, slot_count=None, head_slot_count=None, keys=None):
    """Rows and weights, cut to the size that was asked for."""
    row_count = len(logits)
    if keys is None:
        keys = jax.random.split(jax.random.key(seed), row_count)
    rows, weights = compiled_draws(
        *head_arguments(logits, size),
        jnp.full(row_count, exact, jnp.int32),
        keys,
        slot_count=size if slot_count is None else slot_count,
        head_slot_count=exact if head_slot_count is None else head_slot_count,
    )
    cut = {name: np.asarray(getattr(rows, name))[:, :size] for name in ("token_ids", "log_probs")}
    others = ("prompt_log_probs", "tail_log_probs", "entropies")
    cut |= {name: np.asarray(getattr(rows, name)) for name in others}
    return cut | {"weights": np.asarray(weights)[:, :size]}


def random_logits(seed, row_count=6, vocab_size=40, scale=2.0):
    values = scale * np.random.default_rng(seed).standard_normal((row_count, vocab_size))
    return values.astype(np.float32).astype(np.float64)


def assert_summary_is_that_of_the_set(result, logits, ids):
    """Entropy, own token, and the tail outside the set of the ids, in float64."""
    log_probs = reference.log_softmax(logits)
    rows = np.arange(len(logits))
    own = log_probs[rows, rows % logits.shape[1]]
    entropies = -(np.exp(log_probs) * log_probs).sum(-1)
    tolerance = {"rtol": 2e-6, "atol": 1e-5}
    np.testing.assert_allclose(
        result["log_probs"], np.take_along_axis(log_probs, ids, -1), **tolerance
    )
    np.testing.assert_allclose(result["prompt_log_probs"], own, **tolerance)
    np.testing.assert_allclose(
        result["tail_log_probs"], reference.tail_log_probs(log_probs, ids), **tolerance
    )
    np.testing.assert_allclose(result["entropies"], entropies, **tolerance)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_candidates_keep_their_order_and_the_tail_is_everything_else(temperature):
    logits = random_logits(1)
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(40)[:7] for _ in range(6)])
    rows = score_candidates(logits, ids, temperature=temperature)
    np.testing.assert_array_equal(rows.token_ids, ids)
    assert_summary_is_that_of_the_set(rows._asdict(), logits / temperature, ids)


def test_padding_of_the_candidates_is_no_part_of_the_set():
    logits = random_logits(3)
    ids = np.stack([np.random.default_rng(seed).permutation(40)[:5] for seed in range(6)])
    ids[:, 1] = np.where((ids == 0).any(-1), ids[:, 1], 0)  # the padding's id is named as well
    exact = score_candidates(logits, ids)
    padded = score_candidates(logits, np.pad(ids, ((0, 0), (0, 3))), sizes=5)
    for name in ("prompt_log_probs", "tail_log_probs", "entropies"):
        np.testing.assert_allclose(getattr(padded, name), getattr(exact, name), rtol=1e-6)
    np.testing.assert_allclose(padded.log_probs[:, :5], exact.log_probs, rtol=1e-6)


def test_candidates_that_are_the_whole_vocabulary_leave_no_tail():
    ids = np.stack([np.random.default_rng(seed).permutation(40) for seed in range(6)])
    rows = score_candidates(random_logits(4), ids)
    np.testing.assert_array_equal(rows.tail_log_probs, -np.inf)
    np.testing.assert_allclose(np.exp(rows.log_probs).sum(-1), 1.0, atol=1e-6)


def test_candidates_without_any_probability_are_scored_all_the_same():
    logits = np.zeros((1, 40))
    logits[0, :5] = -200.0  # their sum underflows beside the others
    rows = score_candidates(logits, np.arange(5)[None])
    assert_summary_is_that_of_the_set(rows._asdict(), logits, np.arange(5)[None])


@pytest.mark.parametrize("exact", [0, 1, 6])
def test_draws_are_scored_like_any_token_and_the_tail_is_outside_all_of_them(exact):
    logits = random_logits(5, row_count=16)
    result = draw(logits, size=9, exact=exact)
    assert_summary_is_that_of_the_set(result, logits, result["token_ids"])
    head = np.argsort(-logits, axis=-1, kind="stable")[:, :exact]
    np.testing.assert_array_equal(result["token_ids"][:, :exact], head)
    drawn = result["token_ids"][:, exact:]
    assert not (drawn[:, :, None] == head[:, None]).any()


@pytest.mark.parametrize("exact", [0, 3])
def test_weights_add_up_to_one_and_count_every_draw_of_a_token_in_its_first_slot(exact):
    size = 10
    logits = random_logits(6, row_count=32, vocab_size=8, scale=1.5)
    result = draw(logits, size=size, exact=exact)
    p = np.exp(reference.log_softmax(logits))
    repetitions = 0
    for row, (ids, weights) in enumerate(zip(result["token_ids"], result["weights"], strict=True)):
        np.testing.assert_allclose(weights[:exact], p[row, ids[:exact]], rtol=1e-5)
        outside = 1 - p[row, ids[:exact]].sum()
        for slot in range(exact, size):
            draws = ids[exact:]
            is_first = ids[slot] not in ids[exact:slot]
            expected = (draws == ids[slot]).sum() * outside / (size - exact) if is_first else 0.0
            repetitions += not is_first
            np.testing.assert_allclose(weights[slot], expected, rtol=1e-5)
    assert repetitions > 20
    np.testing.assert_allclose(result["weights"].sum(-1), 1.0, atol=1e-6)


def test_a_token_without_probability_is_never_drawn():
    vocab_size = 3 * DRAW_BLOCK + 7
    logits = np.full((64, vocab_size), -1e9)
    possible = np.array([0, DRAW_BLOCK - 1, DRAW_BLOCK, 2 * DRAW_BLOCK + 5, vocab_size - 1])
    logits[:, possible] = 0.0
    ids = draw(logits, size=16)["token_ids"]
    np.testing.assert_array_equal(np.unique(ids), possible)
    ids = draw(logits, size=16, exact=2)["token_ids"]
    np.testing.assert_array_equal(np.unique(ids[:, 2:]), possible[2:])


def test_draws_depend_on_the_key_of_their_row_and_not_on_how_they_are_compiled_or_batched():
    logits = random_logits(7, row_count=12)
    keys = jax.random.split(jax.random.key(1), 12)
    whole = draw(logits, size=6, exact=2, keys=keys)
    padded = draw(logits, size=6, exact=2, keys=keys, slot_count=16, head_slot_count=8)
    order = np.random.default_rng(0).permutation(12)
    moved = draw(logits[order], size=6, exact=2, keys=keys[order])
    for name in ("token_ids", "weights", "log_probs", "tail_log_probs"):
        np.testing.assert_allclose(padded[name], whole[name], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(moved[name], whole[name][order], rtol=1e-6, err_msg=name)
    other = draw(logits, size=6, exact=2, seed=2)
    assert (other["token_ids"] != whole["token_ids"]).any()


ROWS, VOCAB, SIZE = 8192, 30, 6


def sampled_gradients(exact):
    """The gradient of the objective `sampled` in the student's logits, for many draws of one
    teacher row, [ROWS, V]; with the teacher's p and the student's q."""
    teacher = np.repeat(random_logits(8, 1, VOCAB), ROWS, axis=0)
    student = random_logits(9, 1, VOCAB)
    result = draw(teacher, size=SIZE, exact=exact, seed=3)
    targets = TargetRows(jnp.asarray(result["weights"]), jnp.zeros(ROWS), jnp.zeros((ROWS, SIZE)))

    def loss(logits):
        log_q = jnp.take_along_axis(jax.nn.log_softmax(logits), result["token_ids"], axis=-1)
        rows = StudentRows(log_q, jnp.zeros(ROWS))
        return (
            OBJECTIVES["sampled"]
            .row_loss(rows, targets, ObjectiveParameters(*[jnp.ones(())] * 3))
            .sum()
        )

    logits = jnp.asarray(np.repeat(student, ROWS, axis=0), jnp.float32)
    gradients = np.asarray(jax.jit(jax.grad(loss))(logits), np.float64)
    return (
        gradients,
        np.exp(reference.log_softmax(teacher[:1])[0]),
        np.exp(reference.log_softmax(student)[0]),
    )


@pytest.mark.parametrize("exact", [0, 3])
def test_the_gradient_of_a_sampled_support_averages_to_the_full_one(exact):
    gradients, p, q = sampled_gradients(exact)
    draws = SIZE - exact
    outside = p.copy()
    outside[np.argsort(-p)[:exact]] = 0.0
    # The weight of token v is P m / n with m binomial of n draws and chance p_v / P.
    mass = outside.sum()
    variance = outside * (mass - outside) / draws / ROWS
    error = gradients.mean(0) - (q - p)
    # 5 standard deviations, and what float32 sums lose.
    assert (np.abs(error) <= 5 * np.sqrt(variance) + 1e-6).all()
    tested = variance > 1e-10
    chi_square = (error[tested] ** 2 / variance[tested]).sum() / tested.sum()
    assert 0.4 < chi_square < 2.0  # neither biased nor less random than it says
    common = outside / mass * draws * ROWS > 500  # drawn so often that its variance is known
    assert common.sum() > 5
    np.testing.assert_allclose(gradients.var(0)[common], variance[common] * ROWS, rtol=0.25)


def test_an_exact_head_leaves_less_variance_than_draws_alone():
    drawn, headed = (sampled_gradients(exact)[0].var(0).sum() for exact in (0, 3))
    assert headed < 0.5 * drawn
