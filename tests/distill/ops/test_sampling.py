"""Drawing tokens: with the model's frequencies, within the restrictions, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.sampling import (
    BLOCK_TOKENS,
    SamplingSettings,
    _restrict,
    draw_tokens,
)

V = 8 * BLOCK_TOKENS + 3


def keys_of(seed: int, row_count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), row_count)


def settings_of(temperature: float, top_k: int, top_p: float) -> SamplingSettings:
    return SamplingSettings(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(40, 1.0), (1, 1.0), (V, 0.3), (V, 0.999), (300, 0.6), (5, 0.9), (V, 1.0)]
)
@pytest.mark.parametrize("step", [None, 0.5])
def test_restrictions_keep_the_first_tokens_of_a_stable_sort(
    top_k: int, top_p: float, step: float | None
) -> None:
    logits = 3 * np.random.default_rng(1).standard_normal((16, V))
    if step is not None:
        logits = np.round(logits / step) * step  # many equal tokens
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), -1)
    kept = np.isfinite(jax.jit(_restrict)(log_probs, settings_of(1.0, top_k, top_p)))
    for row, values in enumerate(np.asarray(log_probs, np.float64)):
        # "Keep the smallest set of tokens whose probability reaches this."
        ranked = np.argsort(-values, kind="stable")
        mass = np.cumsum(np.exp(values[ranked]))
        count = V if top_p == 1 else 1 + int((mass < top_p).sum())
        expected = set(ranked[: min(top_k, count)].tolist())
        # One token more or less where the sum is within a rounding error of top_p.
        assert len(expected ^ set(np.flatnonzero(kept[row]).tolist())) <= (
            top_p < 1 and np.abs(mass - top_p).min() < 1e-6
        )


def test_of_equal_tokens_the_lower_ids_are_kept() -> None:
    keys, settings = keys_of(3, 4096), settings_of(1.0, V, 0.9)
    token_ids, log_probs = draw_tokens(jnp.zeros((4096, V)), keys, settings)
    assert 0.89 * V < int(token_ids.max()) <= 0.9 * V + 1
    np.testing.assert_allclose(log_probs, -np.log(V), rtol=1e-5)


def test_a_row_draws_the_same_whatever_the_other_rows_are() -> None:
    logits = 3 * jax.random.normal(jax.random.key(4), (8, V))
    keys = keys_of(5, 8)
    for settings in (settings_of(1.0, V, 1.0), settings_of(0.7, V, 0.8)):
        together = draw_tokens(logits, keys, settings)[0]
        # Equal tokens in one row are looked at in the whole batch.
        beside_flat = draw_tokens(logits.at[7].set(0.0), keys, settings)[0]
        np.testing.assert_array_equal(together[:7], beside_flat[:7])
        alone = draw_tokens(logits[2:3], keys[2:3], settings)[0]
        np.testing.assert_array_equal(alone[0], together[2])


def test_log_probs_ignore_restrictions_but_not_the_temperature() -> None:
    logits = jax.random.normal(jax.random.key(6), (5, V))
    keys = keys_of(7, 5)
    token_ids, log_probs = draw_tokens(logits, keys, settings_of(0.5, 3, 0.4))
    expected = jax.nn.log_softmax(logits / 0.5, -1)[jnp.arange(5), token_ids]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-6)
    greedy, log_probs = draw_tokens(logits, keys, settings_of(0.0, V, 1.0))
    np.testing.assert_array_equal(greedy, logits.argmax(-1))
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(logits, -1).max(-1), rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [7, BLOCK_TOKENS, 3 * BLOCK_TOKENS + 5])
def test_free_draws_have_the_models_frequencies(vocab_size: int) -> None:
    count = 40_000
    logits = np.random.default_rng(0).normal(size=vocab_size) * 2
    # A block that is nearly all of the probability beside one that is nearly none.
    logits[: vocab_size // 3] -= 4
    probabilities = np.exp(logits) / np.exp(logits).sum()
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, vocab_size))
    drawn, _ = draw_tokens(rows, keys_of(8, count), settings_of(1.0, vocab_size, 1.0))
    seen = np.bincount(drawn, minlength=vocab_size)
    expected = count * probabilities
    # Pearson's statistic over the tokens expected often enough; the rest is one class.
    often = expected >= 5
    seen, expected = (np.append(values[often], values[~often].sum()) for values in (seen, expected))
    statistic = ((seen - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 0].sum()
    degrees = (expected > 0).sum() - 1
    # Five standard deviations above a chi-square's mean; the seed is fixed.
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = np.full((2000, BLOCK_TOKENS + 3), -np.inf, np.float32)
    logits[:, [1, BLOCK_TOKENS + 2]] = 0.0
    settings = settings_of(1.0, logits.shape[1], 1.0)
    drawn, log_probs = draw_tokens(jnp.asarray(logits), keys_of(9, 2000), settings)
    assert set(np.unique(drawn).tolist()) == {1, BLOCK_TOKENS + 2}
    np.testing.assert_allclose(log_probs, np.log(0.5), rtol=1e-6)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = np.zeros((2, 3 * BLOCK_TOKENS), np.float32)
    logits[0, [BLOCK_TOKENS + 9, BLOCK_TOKENS + 4, 2 * BLOCK_TOKENS]] = 1.0
    drawn, _ = draw_tokens(jnp.asarray(logits), keys_of(10, 2), settings_of(0.0, V, 1.0))
    assert drawn.tolist() == [BLOCK_TOKENS + 4, 0]
