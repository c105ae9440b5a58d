"""The stack cut into layers: the same numbers in the same memory."""

import jax
import jax.numpy as jnp
import numpy as np

from distill.engine.layer_parts import decode_parts
from distill.engine.weights import ModelWeights
from tests.support.tiny_models import tiny_config

CONFIG = tiny_config(layer_count=3)
ALIGNED = jnp.arange(3 * 16 * 4, dtype=jnp.float32).reshape(3, 16, 4)


def test_layers_of_host_memory_are_views_and_not_copies() -> None:
    adapter = {"q_proj": {"a": ALIGNED + 7, "b": ALIGNED.astype(jnp.bfloat16).reshape(3, 2, 32)}}
    parameters = {"layers": {"kernel": ALIGNED, "scale": jnp.ones((3, 5))}}
    parts = decode_parts(CONFIG, ModelWeights(parameters, adapter))
    assert parts is not None
    assert len(parts) == 3
    for layer, (part, part_adapter) in enumerate(parts):
        stacks = jax.tree.leaves(({"layer": parameters["layers"]}, adapter))
        for stack, view in zip(stacks, jax.tree.leaves((part, part_adapter)), strict=True):
            np.testing.assert_array_equal(view, stack[layer : layer + 1])
            offset = layer * stack[0].nbytes
            if offset % 64 == 0:
                assert view.unsafe_buffer_pointer() == stack.unsafe_buffer_pointer() + offset


def test_a_donated_stack_does_not_change_the_layers_that_were_cut_from_it() -> None:
    stack = ALIGNED + 0
    parts = decode_parts(CONFIG, ModelWeights({"layers": {"kernel": stack}}, None))
    assert parts is not None
    expected = np.array(stack)
    updated = jax.jit(lambda array: array * 2, donate_argnums=0)(stack)
    np.testing.assert_array_equal(updated, expected * 2)
    for layer, (part, _) in enumerate(parts):
        np.testing.assert_array_equal(part["layer"]["kernel"], expected[layer : layer + 1])
