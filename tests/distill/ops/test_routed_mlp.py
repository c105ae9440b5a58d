"""The mixture of experts against a dense float64 reference: every token through every expert."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.ops.routed_mlp import (
    LARGEST_BLOCK,
    SMALLEST_BLOCK,
    ExpertKernels,
    Routing,
    block_rows,
    route,
    routed_mlp,
)

Wide = NDArray[np.float64]


class Problem(NamedTuple):
    """Inputs, and a cotangent of the result."""

    hidden: NDArray[np.float32]  # [N, D]
    experts: NDArray[np.int32]  # [N, k]
    shares: NDArray[np.float32]  # [N, k]
    kernels: ExpertKernels
    cotangent: NDArray[np.float32]  # [N, D]


class Answer(NamedTuple):
    """The result and its gradients."""

    value: Any
    hidden: Any
    shares: Any
    gate: Any
    up: Any
    down: Any


def problem(
    experts: NDArray[Any],
    expert_count: int,
    *,
    width: int = 10,
    hidden_size: int = 7,
    seed: int = 0,
) -> Problem:
    generator = np.random.default_rng(seed)

    def noise(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    token_count = len(experts)
    return Problem(
        hidden=noise(token_count, hidden_size),
        experts=np.asarray(experts, np.int32),
        shares=noise(*experts.shape),
        kernels=ExpertKernels(
            0.5 * noise(expert_count, hidden_size, width),
            0.5 * noise(expert_count, hidden_size, width),
            0.5 * noise(expert_count, width, hidden_size),
        ),
        cotangent=noise(token_count, hidden_size),
    )


def random_choices(
    token_count: int, expert_count: int, choice_count: int, seed: int = 0
) -> NDArray[np.int32]:
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(expert_count)[:choice_count] for _ in range(token_count)]
    return np.asarray(rows, np.int32)


def dense_answer(given: Problem) -> Answer:
    hidden, shares, cotangent = (
        np.asarray(array, np.float64) for array in (given.hidden, given.shares, given.cotangent)
    )
    kernels = ExpertKernels(*(np.asarray(kernel, np.float64) for kernel in given.kernels))
    mask: Wide = np.zeros((len(hidden), len(kernels.gate)))
    np.add.at(mask, (np.arange(len(hidden))[:, None], given.experts), shares)
    value, hidden_gradient = np.zeros_like(hidden), np.zeros_like(hidden)
    mask_gradient = np.zeros_like(mask)
    gradients = ExpertKernels(*(np.zeros_like(kernel) for kernel in kernels))
    for expert in range(len(kernels.gate)):
        gate, up = hidden @ kernels.gate[expert], hidden @ kernels.up[expert]
        sigmoid = 1 / (1 + np.exp(-gate))
        gated = gate * sigmoid * up
        output = gated @ kernels.down[expert]
        value += mask[:, expert, None] * output
        mask_gradient[:, expert] = (output * cotangent).sum(-1)
        output_gradient = mask[:, expert, None] * cotangent
        gated_gradient = output_gradient @ kernels.down[expert].T
        up_gradient = gated_gradient * gate * sigmoid
        gate_gradient = gated_gradient * up * sigmoid * (1 + gate * (1 - sigmoid))
        gradients.gate[expert] = hidden.T @ gate_gradient
        gradients.up[expert] = hidden.T @ up_gradient
        gradients.down[expert] = gated.T @ output_gradient
        hidden_gradient += gate_gradient @ kernels.gate[expert].T
        hidden_gradient += up_gradient @ kernels.up[expert].T
    by_choice = np.take_along_axis(mask_gradient, given.experts.astype(np.int64), axis=1)
    return Answer(value, hidden_gradient, by_choice, *gradients)


@jax.jit
def _own_answer(given: Problem) -> Answer:
    def value(hidden: Any, shares: Any, kernels: ExpertKernels) -> Any:
        return routed_mlp(hidden, Routing(given.experts, shares), kernels)

    result, pull_back = jax.vjp(value, given.hidden, given.shares, given.kernels)
    hidden, shares, kernels = pull_back(given.cotangent)
    return Answer(result, hidden, shares, *kernels)


def own_answer(given: Problem) -> Answer:
    return _own_answer(jax.tree.map(jnp.asarray, given))


def assert_equal(own: Answer, expected: Answer, tolerance: float = 2e-6) -> None:
    for name, value, wanted in zip(Answer._fields, own, expected, strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        error = np.abs(np.asarray(value, np.float64) - wanted).max() / scale
        assert error < tolerance, name


CASES = {
    "some": random_choices(37, 5, 3),
    "one token": random_choices(1, 6, 2),
    "one choice": random_choices(19, 4, 1),
    "every expert": random_choices(11, 4, 4),
    "one expert has all tokens": np.full((300, 1), 2),
    "two experts have all tokens": np.tile([3, 1], (40, 1)),
    "one expert there is": np.zeros((9, 1)),
    "more experts than pairs": random_choices(5, 33, 2),
    "several blocks of an expert": random_choices(600, 3, 2),
}
EXPERT_COUNTS = {
    "some": 5,
    "one token": 6,
    "one choice": 4,
    "every expert": 4,
    "one expert has all tokens": 4,
    "two experts have all tokens": 5,
    "one expert there is": 1,
    "more experts than pairs": 33,
    "several blocks of an expert": 3,
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_all_gradients_equal_the_dense_reference(name: str) -> None:
    given_problem = problem(CASES[name], EXPERT_COUNTS[name])
    assert_equal(own_answer(given_problem), dense_answer(given_problem))


def test_an_expert_that_nobody_chose_has_no_gradient() -> None:
    answer = own_answer(problem(np.tile([3, 1], (40, 1)), 5))
    for gradient in (answer.gate, answer.up, answer.down):
        assert not np.asarray(gradient)[[0, 2, 4]].any()
        assert np.asarray(gradient)[[1, 3]].any()


# The shapes are few, so that few programs are compiled; the choices are free.
@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=24, max_size=24), st.integers(0, 1000))
def test_no_token_is_dropped_however_crowded_an_expert_is(first: list[int], seed: int) -> None:
    second = np.random.default_rng(seed).integers(1, 6, size=24)
    choices = np.stack([first, (np.asarray(first) + second) % 6], axis=1)
    given_problem = problem(choices, 6, seed=seed)
    assert_equal(own_answer(given_problem), dense_answer(given_problem))


def test_a_row_beside_others_equals_the_row_alone() -> None:
    many = problem(random_choices(50, 6, 2), 6)
    together = np.asarray(own_answer(many).value)
    for row in (0, 17, 49):
        part = slice(row, row + 1)
        alone = many._replace(
            hidden=many.hidden[part],
            experts=many.experts[part],
            shares=many.shares[part],
            cotangent=many.cotangent[part],
        )
        np.testing.assert_allclose(own_answer(alone).value[0], together[row], atol=2e-6)


def test_bfloat16_stays_near_the_float64_reference_of_the_same_numbers() -> None:
    given_problem = problem(random_choices(64, 5, 2), 5)
    rounded = given_problem._replace(
        hidden=jnp.asarray(given_problem.hidden, jnp.bfloat16),
        kernels=ExpertKernels(*(jnp.asarray(part, jnp.bfloat16) for part in given_problem.kernels)),
        cotangent=jnp.asarray(given_problem.cotangent, jnp.bfloat16),
    )
    own = own_answer(rounded)
    assert own.value.dtype == own.hidden.dtype == own.gate.dtype == jnp.bfloat16
    assert own.shares.dtype == jnp.float32
    expected = dense_answer(
        rounded._replace(
            hidden=np.asarray(rounded.hidden, np.float32),
            cotangent=np.asarray(rounded.cotangent, np.float32),
        )
    )
    # Of the largest entry: sums of products that were rounded to 8 bits.
    assert_equal(own, expected, tolerance=2e-2)


def test_routing_is_the_top_of_the_softmax_over_all_experts() -> None:
    logits = np.random.default_rng(3).standard_normal((40, 9)).astype(np.float32)
    wide = np.exp(logits.astype(np.float64))
    probabilities = wide / wide.sum(-1, keepdims=True)
    expected = np.argsort(-probabilities, axis=-1)[:, :4]
    top = np.take_along_axis(probabilities, expected, axis=-1)
    as_it_is = route(jnp.asarray(logits), 4, is_normalized=False)
    normalized = route(jnp.asarray(logits), 4, is_normalized=True)
    for routing in (as_it_is, normalized):
        np.testing.assert_array_equal(routing.experts, expected)
        assert routing.shares.dtype == jnp.float32
    np.testing.assert_allclose(as_it_is.shares, top, rtol=1e-5)
    np.testing.assert_allclose(normalized.shares, top / top.sum(-1, keepdims=True), rtol=1e-5)


def test_blocks_lie_between_their_bounds_and_shrink_with_the_share_of_an_expert() -> None:
    assert block_rows(8, 128) == SMALLEST_BLOCK
    assert block_rows(1 << 20, 2) == LARGEST_BLOCK
    sizes = [block_rows(8192, expert_count) for expert_count in (1, 8, 64, 128, 512)]
    assert sizes == sorted(sizes, reverse=True)


def _compiled(expert_count: int, *, token_count: int = 512, is_training: bool) -> Any:
    shape = jax.ShapeDtypeStruct
    hidden_size, width, choice_count = 64, 96, 4
    arguments = (
        shape((token_count, hidden_size), jnp.float32),
        shape((token_count, choice_count), jnp.float32),
        ExpertKernels(
            shape((expert_count, hidden_size, width), jnp.float32),
            shape((expert_count, hidden_size, width), jnp.float32),
            shape((expert_count, width, hidden_size), jnp.float32),
        ),
        shape((token_count, choice_count), jnp.int32),
    )

    def loss(hidden: Any, shares: Any, kernels: Any, experts: Any) -> Any:
        return (routed_mlp(hidden, Routing(experts, shares), kernels) ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2) if is_training else (0, 1))
    return jax.jit(gradient).lower(*arguments).compile()


@pytest.mark.parametrize("is_training", [False, True])
def test_temporaries_do_not_grow_with_experts_times_tokens(is_training: bool) -> None:
    few, many = (
        _compiled(count, is_training=is_training).memory_analysis().temp_size_in_bytes
        for count in (8, 64)
    )
    # Every token through 56 more experts would be 512 · 56 · 96 · 4 bytes, 11 MB.
    assert many < few + 512 * 96 * 4


def test_frozen_experts_cost_no_product_in_the_gradient() -> None:
    frozen, trained = (
        _compiled(8, is_training=is_training).as_text().count(" dot(")
        for is_training in (False, True)
    )
    assert trained == frozen + 3
