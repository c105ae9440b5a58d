"""Drawing tokens: the few-candidates path draws what the full sort would draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.sampling import CANDIDATE_COUNT, SamplingSettings, _draw_ranked, draw_tokens

V = 4 * CANDIDATE_COUNT


def keys_of(seed: int, row_count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), row_count)


def settings_of(temperature: float, top_k: int, top_p: float) -> SamplingSettings:
    return SamplingSettings(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))


@pytest.mark.parametrize(("top_k", "top_p"), [(40, 1.0), (V, 0.3), (300, 0.6)])
def test_few_candidates_draw_the_same_tokens_as_all(top_k: int, top_p: float) -> None:
    logits = 4 * jax.random.normal(jax.random.key(1), (64, V))
    keys, settings = keys_of(2, 64), settings_of(1.0, top_k, top_p)
    log_probs = jax.nn.log_softmax(logits, -1)
    few = _draw_ranked(*jax.lax.top_k(log_probs, CANDIDATE_COUNT), keys, settings)
    everything = _draw_ranked(*jax.lax.top_k(log_probs, V), keys, settings)
    np.testing.assert_array_equal(few, everything)
    np.testing.assert_array_equal(draw_tokens(logits, keys, settings)[0], everything)


def test_a_flat_distribution_reaches_beyond_the_candidates() -> None:
    keys, settings = keys_of(3, 256), settings_of(1.0, V, 0.9)
    token_ids, log_probs = draw_tokens(jnp.zeros((256, V)), keys, settings)
    assert int(token_ids.max()) > CANDIDATE_COUNT
    # Equal tokens count by id, so the smallest set of 90 % is the lower ids.
    assert int(token_ids.max()) <= 0.9 * V + 1
    np.testing.assert_allclose(log_probs, -np.log(V), rtol=1e-5)


def test_a_row_draws_the_same_whatever_the_other_rows_are() -> None:
    logits = 3 * jax.random.normal(jax.random.key(4), (8, V))
    keys = keys_of(5, 8)
    for settings in (settings_of(1.0, V, 1.0), settings_of(0.7, V, 0.8)):
        together = draw_tokens(logits, keys, settings)[0]
        # The flat row forces the full sort upon its batch.
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
