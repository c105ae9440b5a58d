"""A vocabulary padded beyond the tokenizer is the vocabulary without its padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.logits import Head, head_logits
from distill.ops.objectives import OBJECTIVES, ObjectiveParameters, TargetRows
from distill.ops.sampled_support import candidate_rows, sampled_rows
from distill.ops.sampling import SamplingSettings, draw_tokens
from distill.ops.topk import top_k_rows
from tests.support.suites import slow

# No multiple of a block of any pass; the padding reaches over the end of one.
PADDED, VALID = 330, 261
ROWS, WIDTH, RANK = 7, 12, 3


def inputs(with_update: bool) -> tuple[jax.Array, Head, Head]:
    """Hidden states, the padded head, and the head without padding."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    hidden, kernel = normal(ROWS, WIDTH), normal(PADDED, WIDTH)
    # Padding that would be the most probable were it not masked.
    kernel = kernel.at[VALID:].set(5 * hidden[0])
    down, up = (normal(WIDTH, RANK), normal(RANK, PADDED)) if with_update else (None, None)
    padded = Head(kernel, down, up, valid_vocab_size=VALID)
    alone = Head(kernel[:VALID], down, None if up is None else up[:, :VALID])
    return hidden, padded, alone


def rows_of_head(hidden: jax.Array, head: Head) -> tuple[Any, ...]:
    ids = jnp.arange(ROWS) * 30
    return hidden, head, ids, jnp.linspace(0.5, 2.0, ROWS), jnp.array([1, 2, 3, 5, 8, 13, VALID])


def assert_same(ours: Any, theirs: Any) -> None:
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_update", [False, True])
def test_top_k_is_that_of_the_logits_without_padding(with_update: bool) -> None:
    hidden, padded, alone = inputs(with_update)
    ours = top_k_rows(*rows_of_head(hidden, padded), top_k=VALID)
    assert_same(ours, top_k_rows(*rows_of_head(hidden, alone), top_k=VALID))
    # And both are those of NumPy in float64.
    kernel = np.asarray(alone.kernel, np.float64)
    if alone.down is not None:
        kernel = kernel + (np.asarray(alone.down) @ np.asarray(alone.up)).T
    temperatures = np.asarray(rows_of_head(hidden, alone)[3])[:, None]
    logits = np.asarray(hidden, np.float64) @ kernel.T / temperatures
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = np.sort(log_probs, axis=1)[:, ::-1]
    for row, size in enumerate(np.asarray(rows_of_head(hidden, alone)[4])):
        np.testing.assert_allclose(ours.log_probs[row, :size], expected[row, :size], atol=2e-5)
    np.testing.assert_allclose(ours.entropies, -(np.exp(log_probs) * log_probs).sum(1), atol=2e-5)


def test_named_and_drawn_supports_are_those_without_padding() -> None:
    hidden, padded, alone = inputs(with_update=False)
    candidates = jnp.tile(jnp.arange(0, VALID, 20), (ROWS, 1))
    shapes = (jnp.full(ROWS, 14), jax.random.split(jax.random.key(0), ROWS))
    results = []
    for head in (padded, alone):
        first = rows_of_head(hidden, head)[:4]
        named = candidate_rows(*first, shapes[0], candidates)
        drawn = sampled_rows(
            *first, shapes[0], jnp.arange(ROWS), shapes[1], slot_count=16, head_slot_count=8
        )
        results.append((named, [array[:, :14] for array in (*drawn.rows[:2], drawn.draw_weights)]))
    assert_same(*results)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_is_never_drawn_and_takes_no_probability(temperature: float, top_p: float) -> None:
    hidden, padded, alone = inputs(with_update=False)
    keys = jax.random.split(jax.random.key(1), ROWS)
    settings = SamplingSettings(jnp.float32(temperature), jnp.int32(PADDED), jnp.float32(top_p))
    token_ids, log_probs = draw_tokens(head_logits(hidden, padded), keys, settings)
    assert (token_ids < VALID).all()
    logits = head_logits(hidden, alone) / (temperature or 1.0)
    expected = jax.nn.log_softmax(logits)[jnp.arange(ROWS), token_ids]
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("with_update", [False, True])
@pytest.mark.parametrize(
    "objective", ["tail_bucket", slow("cross_entropy"), slow("reverse_tail_bucket")]
)
def test_losses_and_gradients_are_those_without_padding(objective: str, with_update: bool) -> None:
    hidden, padded, alone = inputs(with_update)
    spec = OBJECTIVES[objective]
    ids = jnp.asarray(
        np.random.default_rng(1).permuted(np.tile(np.arange(VALID), (ROWS, 1)), axis=1)
    )
    values = jnp.log(jnp.full((ROWS, 6), 0.15))
    if objective == "cross_entropy":
        values = jnp.exp(values)
    rows = TargetRows(values, jnp.log(jnp.full(ROWS, 0.1)), jnp.zeros((ROWS, 6)))
    targets = HeadTargets(ids[:, :6], rows, jnp.linspace(0.0, 1.0, ROWS))
    settings = HeadSettings(spec.row_loss, spec.needs_distribution)

    def loss(hidden: jax.Array, head: Head) -> tuple[jax.Array, Any]:
        unused = ObjectiveParameters(*(jnp.float32(0.5),) * 3)
        return head_loss(hidden, head, targets, settings, temperature=0.7, parameters=unused)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, known), (of_hidden, of_head) = gradient(hidden, padded)
    (other_value, other_known), (of_hidden_alone, of_head_alone) = gradient(hidden, alone)
    assert_same((value, known, of_hidden), (other_value, other_known, of_hidden_alone))
    np.testing.assert_array_equal(of_head.kernel[VALID:], 0.0)
    assert_same(of_head.kernel[:VALID], of_head_alone.kernel)
    if with_update:
        np.testing.assert_array_equal(of_head.up[:, VALID:], 0.0)
        assert_same((of_head.down, of_head.up[:, :VALID]), (of_head_alone.down, of_head_alone.up))
