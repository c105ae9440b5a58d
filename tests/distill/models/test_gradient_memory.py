"""What loops over layers copy, widen and keep, read off the compiled programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.models.adapters import LoraSpec, init_adapter
from distill.models.functional import build_graph, hidden_states
from tests.support.tiny_models import tiny_config

LAYERS, TOKENS = 3, 40
CONFIG = tiny_config("llama", layer_count=LAYERS)
LORA = LoraSpec(rank=2, alpha=4.0, target_modules=("q_proj", "down_proj"), seed=0)


@pytest.fixture(scope="module")
def model():
    graph, shapes = build_graph(CONFIG, jnp.bfloat16)
    generator = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * generator.normal(size=leaf.shape), leaf.dtype), shapes
    )
    return graph, parameters


def token_ids():
    return jnp.arange(TOKENS)[None] % CONFIG.vocab_size


def stacked(text, dtype):
    """The shapes of a dtype in a program whose first axis is the layers'."""
    return set(re.findall(rf"\b{dtype}\[{LAYERS},[\d,]*\]", text))


def weight_shapes(parameters):
    """Of the stacked kernels, as a program writes them."""
    leaves = jax.tree.leaves(parameters["layers"])
    return {",".join(map(str, leaf.shape)) for leaf in leaves if leaf.dtype == jnp.bfloat16}


def test_scoring_in_bfloat16_widens_no_stack_of_weights(model):
    graph, parameters = model
    program = jax.jit(hidden_states, static_argnums=0).lower(graph, parameters, token_ids())
    text = program.compile().as_text()
    widened = {shape[len("f32[") : -1] for shape in stacked(text, "f32")}
    assert not widened & weight_shapes(parameters)


def test_training_an_adapter_in_bfloat16_keeps_its_residuals_as_bits(model):
    graph, parameters = model
    adapter = init_adapter(CONFIG, LORA, jnp.float32)

    def loss(adapter):
        return hidden_states(graph, parameters, token_ids(), adapter=adapter).mean(
            dtype=jnp.float32
        )

    text = jax.jit(jax.grad(loss)).lower(adapter).compile().as_text()
    assert stacked(text, "u16")  # the residuals, and the weights
    # A stack of bfloat16 that a loop fills is rewritten whole for every layer of it.
    filled = re.findall(rf"bf16\[{LAYERS},[\d,]*\]\S* (?:fusion|dynamic-update-slice)\(", text)
    assert filled == []


def test_wider_weights_are_cast_by_each_layer_and_get_gradients_of_their_own_dtype(model):
    graph, parameters = model
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters["layers"])

    def loss(layers, head_and_norm):
        states = hidden_states(graph, {**head_and_norm, "layers": layers}, token_ids())
        assert states.dtype == jnp.bfloat16
        return (states.astype(jnp.float32) ** 2).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(wide, parameters)
    np.testing.assert_array_equal(value, jax.jit(loss)(parameters["layers"], parameters))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    # Against the gradient in float32, whose rounding is another.
    wide_graph, _ = build_graph(CONFIG, jnp.float32)
    others = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)

    def reference(layers):
        return (hidden_states(wide_graph, {**others, "layers": layers}, token_ids()) ** 2).sum()

    for own, other in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(jax.jit(jax.grad(reference))(wide)), strict=True
    ):
        assert np.linalg.norm(own - other) < 0.05 * np.linalg.norm(other)


def test_differentiating_bfloat16_weights_is_refused(model):
    graph, parameters = model
    with pytest.raises(TypeError, match="hand the loop float32 weights"):
        jax.grad(
            lambda layers: hidden_states(graph, {**parameters, "layers": layers}, token_ids()).sum(
                dtype=jnp.float32
            )
        )(parameters["layers"])
