"""What loops over layers copy, widen and keep, read off the compiled programs."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.network.adapters import LoraSpec, init_adapter, layer_targets
from distill.network.functional import build_graph, hidden_states
from tests.distill.network.test_functional import random_model
from tests.support.devices import only_cpu
from tests.support.suites import slow
from tests.support.tiny_models import tiny_config

LAYERS, TOKENS = 3, 40
CONFIG = tiny_config("llama", layer_count=LAYERS)
CONFIGS = {
    "attention": CONFIG,
    "experts": tiny_config("qwen3_moe", layer_count=LAYERS),
    "delta net": tiny_config("qwen3_5_text", layer_count=2 * LAYERS),
}
NOT_DENSE = ("experts", "delta net")
ROUNDING = {"attention": 0.02, "experts": 0.03, "delta net": 0.15}
"""Of a gradient of two periods, by its length: over twice what bfloat16 was measured to cost
(0.008, 0.011, 0.064). In the last, whose memory carries errors on, JAX's own gradient of
bfloat16 weights is off by 0.067."""


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, "bfloat16")


@cache
def gradient_program(name, dtype):
    """The parameters, and the compiled gradient of an adapter of two projections, as text."""
    config = CONFIGS[name]
    graph, parameters = random_model(config, dtype)
    spec = LoraSpec(rank=2, alpha=4.0, target_modules=layer_targets(config)[:2], seed=0)

    def loss(adapter):
        states = hidden_states(graph, parameters, token_ids(), adapter=adapter)
        return states.astype(jnp.float32).sum()

    adapter = init_adapter(config, spec, "float32")
    return parameters, jax.jit(jax.grad(loss)).lower(adapter).compile().as_text()


def written(text):
    """(dtype, shape) of every array that a slice is written into, also inside of fusions, which are
    named after what they do."""
    found = re.findall(r"%\S*dynamic[-_]update[-_]slice\S* = (\w+)\[([\d,]+)\]", text)
    return {(dtype, tuple(map(int, shape.split(",")))) for dtype, shape in found}


def token_ids():
    return jnp.arange(TOKENS)[None] % CONFIG.vocab_size


def stacked(text, dtype):
    """The shapes of a dtype in a program whose first axis is the layers'."""
    return set(re.findall(rf"\b{dtype}\[{LAYERS},[\d,]*\]", text))


def weight_shapes(parameters):
    """Of the stacked kernels, as a program writes them."""
    leaves = jax.tree.leaves(parameters["layers"])
    return {",".join(map(str, leaf.shape)) for leaf in leaves if leaf.dtype == jnp.bfloat16}


@only_cpu
def test_scoring_in_bfloat16_widens_no_stack_of_weights(model):
    graph, parameters = model
    program = jax.jit(hidden_states, static_argnums=0).lower(graph, parameters, token_ids())
    text = program.compile().as_text()
    widened = {shape[len("f32[") : -1] for shape in stacked(text, "f32")}
    assert not widened & weight_shapes(parameters)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("attention", "float32"),
        ("attention", "bfloat16"),
        *(slow(name, dtype) for name in NOT_DENSE for dtype in ("float32", "bfloat16")),
    ],
)
def test_training_an_adapter_keeps_no_copy_of_the_weights_beside_it(name, dtype):
    parameters, text = gradient_program(name, dtype)
    weights = {leaf.shape[1:] for leaf in jax.tree.leaves(parameters["layers"]) if leaf.ndim > 2}
    stacks = {shape for _, shape in written(text) if shape[0] == LAYERS}
    assert stacks, "the residuals of every layer"
    assert not {shape for shape in stacks if shape[1:] in weights}


@only_cpu
@pytest.mark.parametrize("name", ["attention", *map(slow, NOT_DENSE)])
def test_training_an_adapter_in_bfloat16_writes_residuals_as_bits(name):
    _, text = gradient_program(name, "bfloat16")
    stacks = {dtype for dtype, shape in written(text) if shape[0] == LAYERS and TOKENS in shape}
    # Some sums are float32; a stack of bfloat16 would be rewritten for every layer.
    assert "u16" in stacks
    assert "bf16" not in stacks


@pytest.mark.parametrize("name", ["attention", *map(slow, NOT_DENSE)])
def test_wider_weights_are_cast_where_they_are_used_and_get_gradients_of_their_own_dtype(name):
    # Two periods are a loop already, and each one more rounds the gradient once more.
    config = replace(CONFIGS[name], layer_count=2 * len(CONFIGS[name].period))
    graph, parameters = random_model(config, "bfloat16")
    wide_graph, _ = build_graph(config, jnp.dtype("float32"))
    noise = np.random.default_rng(4)

    def widened(leaf):
        # Values that bfloat16 has to round; what is float32 already is used as it is.
        is_rounded = leaf.dtype == jnp.bfloat16
        factor = 1 + 2.0**-9 * noise.normal(size=leaf.shape) * is_rounded
        return (leaf * factor).astype(jnp.float32)

    wide = jax.tree.map(widened, parameters)
    parameters = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), wide, parameters)
    shape = (1, TOKENS, config.hidden_size)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)

    def loss(graph, layers, outside):
        states = hidden_states(graph, {**outside, "layers": layers}, token_ids())
        return (states.astype(jnp.float32) * direction).sum()

    run = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    value, gradients = run(graph, wide["layers"], parameters)
    narrow = jax.jit(loss, static_argnums=0)(graph, parameters["layers"], parameters)
    np.testing.assert_array_equal(value, narrow)
    _, exact = run(wide_graph, wide["layers"], wide)
    for own, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        assert own.dtype == jnp.float32
        assert np.linalg.norm(own - other) < ROUNDING[name] * np.linalg.norm(other)


@only_cpu
def test_differentiating_bfloat16_weights_is_refused(model):
    graph, parameters = model
    with pytest.raises(TypeError, match="hand the loop float32 weights"):
        jax.grad(
            lambda layers: hidden_states(graph, {**parameters, "layers": layers}, token_ids()).sum(
                dtype=jnp.float32
            )
        )(parameters["layers"])
