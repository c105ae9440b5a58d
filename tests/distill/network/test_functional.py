"""Models as functions: caches, padding, adapters, recomputation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.errors import InvalidFieldError
from distill.network.adapters import ADAPTER_TARGETS, LoraSpec, init_adapter, scale_adapter
from distill.network.config import ModelConfig
from distill.network.functional import (
    Graph,
    Parameters,
    build_graph,
    cached_hidden_states,
    head_kernel,
    hidden_states,
    init_cache,
)
from tests.support.suites import slow
from tests.support.tiny_models import LLAMA3_ROPE, tiny_config

forward = jax.jit(hidden_states, static_argnums=0, static_argnames="remat")
cached_forward = jax.jit(cached_hidden_states, static_argnums=0)

CONFIGS = {
    "llama": tiny_config("llama", rope_scaling=LLAMA3_ROPE),
    "qwen3": tiny_config("qwen3", head_dim=10),
}


@pytest.fixture(params=["llama", slow("qwen3")])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def random_model(config: ModelConfig, dtype: str = "float32") -> tuple[Graph, Parameters]:
    graph, shapes = build_graph(config, jnp.dtype(dtype))
    generator = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(generator.standard_normal(leaf.shape) * 0.2, leaf.dtype)

    return graph, jax.tree.map(draw, shapes)


def random_ids(config: ModelConfig, row_count: int, length: int) -> jax.Array:
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (row_count, length))
    return jnp.asarray(ids, jnp.int32)


def random_adapter(config: ModelConfig, targets: tuple[str, ...] = ADAPTER_TARGETS) -> Any:
    spec = LoraSpec(rank=3, alpha=6.0, target_modules=targets, seed=4)
    generator = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(generator.standard_normal(leaf.shape) * 0.1, leaf.dtype),
        init_adapter(config, spec, "float32"),
    )


def test_later_tokens_do_not_change_earlier_states(config: ModelConfig) -> None:
    graph, parameters = random_model(config)
    ids = random_ids(config, 2, 12)
    other = ids.at[:, 7:].set(3)
    first = forward(graph, parameters, ids)
    second = forward(graph, parameters, other)
    np.testing.assert_array_equal(first[:, :7], second[:, :7])
    assert np.abs(first[:, 7:] - second[:, 7:]).max() > 1e-3


def test_padding_and_other_rows_do_not_change_a_row(config: ModelConfig) -> None:
    graph, parameters = random_model(config)
    ids = random_ids(config, 3, 12)
    alone = forward(graph, parameters, ids[1:2, :9])
    np.testing.assert_allclose(forward(graph, parameters, ids)[1:2, :9], alone, atol=1e-5)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_cached_forward_equals_the_whole(config: ModelConfig, with_adapter: bool) -> None:
    graph, parameters = random_model(config)
    adapter = random_adapter(config) if with_adapter else None
    ids = random_ids(config, 2, 11)
    whole = forward(graph, parameters, ids, adapter=adapter)
    # Prompts of 6 and 4 tokens, the shorter one padded: its padding's slots are overwritten.
    lengths = np.array([6, 4])
    cache = init_cache(config, 2, 11, "float32")
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    prompt, cache = cached_forward(graph, parameters, ids[:, :6], positions, cache, adapter=adapter)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], whole[row, :length], atol=1e-5)
    for step in range(5):
        at = lengths + step
        tokens = ids[np.arange(2), at][:, None]
        state, cache = cached_forward(
            graph, parameters, tokens, jnp.asarray(at)[:, None], cache, adapter=adapter
        )
        np.testing.assert_allclose(state[:, 0], whole[np.arange(2), at], atol=1e-5)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_cutting_the_stack_changes_neither_states_nor_cache(
    config: ModelConfig, with_adapter: bool
) -> None:
    graph, parameters = random_model(config)
    adapter = random_adapter(config) if with_adapter else None
    ids, positions = random_ids(config, 2, 5), jnp.broadcast_to(jnp.arange(5), (2, 5))
    whole, one_part = cached_forward(
        graph, parameters, ids, positions, init_cache(config, 2, 8, "float32"), adapter=adapter
    )
    parts = [
        jax.tree.map(
            lambda leaf, layer=layer: leaf[layer : layer + 1],
            ({"layer": parameters["layers"]}, adapter or {}),
        )
        for layer in range(config.layer_count)
    ]
    cache = init_cache(config, 2, 8, "float32", part_sizes=[1] * config.layer_count)
    cut, many_parts = cached_forward(graph, parameters, ids, positions, cache, parts=parts)
    np.testing.assert_allclose(cut, whole, atol=1e-5)
    joined = jax.tree.map(lambda *layers: np.concatenate(layers), *many_parts.parts)
    jax.tree.map(
        lambda mine, other: np.testing.assert_allclose(mine, other, atol=1e-5),
        joined,
        one_part.parts[0],
    )


def test_token_past_the_cache_is_not_written() -> None:
    config = CONFIGS["llama"]
    graph, parameters = random_model(config)
    cache = init_cache(config, 1, 4, "float32")
    token = jnp.ones((1, 1), jnp.int32)
    _, cache = cached_forward(graph, parameters, token, jnp.full((1, 1), 3), cache)
    _, after = cached_forward(graph, parameters, token + 1, jnp.full((1, 1), 4), cache)
    jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_fresh_adapter_changes_no_bit(config: ModelConfig) -> None:
    graph, parameters = random_model(config)
    ids = random_ids(config, 2, 8)
    spec = LoraSpec(rank=3, alpha=6.0, target_modules=ADAPTER_TARGETS, seed=0)
    adapter = scale_adapter(init_adapter(config, spec, "float32"), spec.scale)
    base = forward(graph, parameters, ids)
    np.testing.assert_array_equal(forward(graph, parameters, ids, adapter=adapter), base)


@pytest.mark.parametrize("target", ADAPTER_TARGETS)
def test_adapter_equals_weights_with_the_product_added(config: ModelConfig, target: str) -> None:
    graph, parameters = random_model(config)
    ids = random_ids(config, 1, 8)
    adapter = random_adapter(config)
    pair = adapter[target]
    # The others change nothing, but keep one shape of tree and so one compilation.
    for other in set(ADAPTER_TARGETS) - {target}:
        adapter[other]["b"] *= 0
    module = "attention" if target in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    merged = jax.tree.map(lambda leaf: leaf, parameters)
    merged["layers"][module][target]["kernel"] += 2.0 * pair["a"] @ pair["b"]
    expected = forward(graph, merged, ids)
    actual = forward(graph, parameters, ids, adapter=scale_adapter(adapter, 2.0))
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    assert np.abs(actual - forward(graph, parameters, ids)).max() > 1e-3


def test_recomputing_layers_changes_neither_value_nor_gradient(config: ModelConfig) -> None:
    graph, parameters = random_model(config)
    ids = random_ids(config, 2, 8)

    def loss(parameters: Parameters, adapter: Any, remat: bool) -> jax.Array:
        return (hidden_states(graph, parameters, ids, adapter=adapter, remat=remat) ** 3).sum()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    adapter = random_adapter(config)
    kept, recomputed = (gradient(parameters, adapter, remat) for remat in (False, True))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4),
        kept,
        recomputed,
    )


def test_gradient_of_a_parameter_equals_finite_differences(config: ModelConfig) -> None:
    graph, parameters = random_model(config)
    ids = random_ids(config, 1, 6)
    adapter = random_adapter(config)
    direction = random_adapter(config)

    @jax.jit
    def loss(step: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda leaf, along: leaf + step * along, adapter, direction)
        return (hidden_states(graph, parameters, ids, adapter=moved) * jnp.arange(48)).mean()

    slope = jax.grad(loss)(0.0)
    difference = (loss(1e-2) - loss(-1e-2)) / 2e-2
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_compute_dtype_is_that_of_the_states_and_norms_stay_float32(config: ModelConfig) -> None:
    graph, parameters = random_model(config, "bfloat16")
    ids = random_ids(config, 1, 8)
    adapter = random_adapter(config)
    state = forward(graph, parameters, ids, adapter=adapter)
    assert state.dtype == jnp.bfloat16
    assert parameters["norm"]["scale"].dtype == jnp.float32
    assert parameters["layers"]["attention"]["q_proj"]["kernel"].dtype == jnp.bfloat16
    cache = init_cache(config, 1, 8, "bfloat16")
    cached, _ = cached_forward(graph, parameters, ids, jnp.arange(8)[None], cache, adapter=adapter)
    assert cached.dtype == jnp.bfloat16
    wide_graph, _ = build_graph(config, "float32")
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)
    expected = forward(wide_graph, wide, ids, adapter=adapter)
    # bfloat16 keeps 8 bits: a few percent after two layers, nowhere near another model's states.
    assert np.abs(state - expected).mean() < 0.05 * np.abs(expected).mean()


def test_head_is_the_embedding_when_tied_and_its_own_kernel_when_not() -> None:
    tied, untied = CONFIGS["llama"], CONFIGS["qwen3"]
    _, parameters = random_model(tied)
    assert head_kernel(tied, parameters) is parameters["embed_tokens"]["embedding"]
    assert "lm_head" not in parameters
    _, parameters = random_model(untied)
    assert head_kernel(untied, parameters) is parameters["lm_head"]["embedding"]
    assert head_kernel(untied, parameters).shape == (untied.vocab_size, untied.hidden_size)


def test_graphs_of_one_config_are_one_compilation(config: ModelConfig) -> None:
    first, second = build_graph(config, "float32")[0], build_graph(config, "float32")[0]
    assert first == second
    assert hash(first) == hash(second)


def test_initial_a_depends_on_seed_and_target_alone() -> None:
    config = CONFIGS["llama"]
    spec = LoraSpec(rank=4, alpha=8.0, target_modules=("v_proj", "q_proj"), seed=1)
    both = init_adapter(config, spec, "float32")
    alone = init_adapter(
        config, LoraSpec(rank=4, alpha=8.0, target_modules=("q_proj",), seed=1), "float32"
    )
    np.testing.assert_array_equal(both["q_proj"]["a"], alone["q_proj"]["a"])
    assert np.abs(both["q_proj"]["a"]).max() <= config.hidden_size**-0.5
    assert not np.array_equal(both["q_proj"]["a"], both["v_proj"]["a"])
    other = LoraSpec(rank=4, alpha=8.0, target_modules=("q_proj",), seed=2)
    assert not np.array_equal(
        init_adapter(config, other, "float32")["q_proj"]["a"], alone["q_proj"]["a"]
    )


@pytest.mark.parametrize(
    ("rank", "targets", "problem"),
    [
        (0, ("q_proj",), r"lora\.rank: must be at least 1, got 0"),
        (1, (), r"lora\.target_modules: must name at least one"),
        (1, ("embed_tokens",), r"lora\.target_modules: must be among .*'embed_tokens'"),
        (1, ("q_proj", "q_proj"), r"lora\.target_modules: must not name a projection twice"),
    ],
)
def test_wrong_adapter_is_refused_by_field(
    rank: int, targets: tuple[str, ...], problem: str
) -> None:
    spec = LoraSpec(rank=rank, alpha=1.0, target_modules=targets, seed=0)
    with pytest.raises(InvalidFieldError, match=problem):
        init_adapter(CONFIGS["llama"], spec, "float32")
