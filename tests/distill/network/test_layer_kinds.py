"""Models of several kinds of layers: the same layers in other stacks are the same model."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from distill.engine.decoding import grow_cache, place_prompt
from distill.engine.layer_parts import decode_parts
from distill.engine.weights import ModelWeights
from distill.errors import InvalidFieldError
from distill.models.hf_weights import read_weights
from distill.models.write_directory import hf_tensors, write_peft_adapter
from distill.network.adapters import ADAPTER_TARGETS, LoraSpec, init_adapter, layer_targets
from distill.network.functional import (
    Parameters,
    build_graph,
    cached_hidden_states,
    hidden_states,
    init_cache,
)
from distill.network.layer_kinds import LayerKind, shortest_period
from tests.support.suites import slow
from tests.support.tiny_models import tiny_config, write_tiny_model

A, B = LayerKind(name="a"), LayerKind(name="b")
ONE = tiny_config(layer_count=6)
# In one period and in two; a kind twice in a period and once; layers that are no whole period.
PERIODS = {"aab": (A, A, B), "ab": (A, B), "abbaab": (A, B, B, A, A, B)}

forward = jax.jit(hidden_states, static_argnums=0, static_argnames="remat")


@pytest.fixture(scope="module")
def one_kind() -> tuple[Any, Parameters]:
    graph, shapes = build_graph(ONE, "float32")
    generator = np.random.default_rng(0)
    return graph, jax.tree.map(
        lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape) * 0.2, leaf.dtype), shapes
    )


def regrouped(parameters: Parameters, config: Any) -> Parameters:
    """The layers of one stack in the stacks of a config's kinds."""

    def take(kind: LayerKind) -> Any:
        layers = np.array(config.layers_of(kind))
        return jax.tree.map(lambda leaf: leaf[layers], parameters["layers"])

    stacks = {kind.name: take(kind) for kind in config.kinds}
    return {**parameters, "layers": stacks}


def random_adapter(config: Any, targets: tuple[str, ...] = ADAPTER_TARGETS) -> Any:
    spec = LoraSpec(rank=2, alpha=2.0, target_modules=targets, seed=3)
    return jax.tree.map(lambda leaf: leaf + 0.05, init_adapter(config, spec, "float32"))


IDS = jnp.asarray(np.random.default_rng(1).integers(0, 512, (2, 9)), jnp.int32)


@pytest.mark.parametrize(
    "name",
    [
        "aab",
        slow("ab"),
        slow("abbaab"),
    ],
)
def test_states_and_gradients_are_those_of_one_stack(name: str, one_kind: Any) -> None:
    config = tiny_config(layer_count=6, period=PERIODS[name])
    graph, shapes = build_graph(config, "float32")
    assert set(shapes["layers"]) == {"a", "b"}
    one_graph, one_parameters = one_kind
    adapter = random_adapter(config)

    def loss(graph: Any, parameters: Parameters, adapter: Any) -> jax.Array:
        return (hidden_states(graph, parameters, IDS, adapter=adapter, remat=True) ** 2).mean()

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)
    value, gradients = gradient(graph, regrouped(one_parameters, config), adapter)
    one_value, one_gradients = gradient(one_graph, one_parameters, adapter)
    np.testing.assert_allclose(value, one_value, rtol=1e-5)
    jax.tree.map(
        lambda mine, other: np.testing.assert_allclose(mine, other, rtol=2e-4, atol=1e-5),
        gradients,
        (regrouped(one_gradients[0], config), one_gradients[1]),
    )


@pytest.mark.parametrize("in_parts", [True, slow(False)])
def test_cached_states_are_those_of_the_whole_whichever_way_the_stack_is_cut(
    in_parts: bool, one_kind: Any
) -> None:
    config = tiny_config(layer_count=6, period=(A, A, B))
    graph, _ = build_graph(config, "float32")
    parameters = regrouped(one_kind[1], config)
    adapter = random_adapter(config)
    step = partial(jax.jit(cached_hidden_states, static_argnums=0), graph, parameters)
    whole = forward(graph, parameters, IDS, adapter=adapter)
    prompt = init_cache(config, 1, 8, "float32")
    first, prompt = step(IDS[:1, :5], jnp.arange(5)[None], prompt, adapter=adapter)
    np.testing.assert_allclose(first, whole[:1, :5], atol=1e-5)
    parts = decode_parts(config, ModelWeights(parameters, adapter)) if in_parts else None
    sizes = [1] * 6 if in_parts else None
    cache = init_cache(config, 2, 8, "float32", part_sizes=sizes)
    cache = grow_cache(place_prompt(cache, prompt, jnp.int32(1)), slot_count=12)
    for position in range(5, 9):
        tokens = jnp.repeat(IDS[:1, position : position + 1], 2, axis=0)
        at = jnp.full((2, 1), position)
        state, cache = step(tokens, at, cache, adapter=adapter, parts=parts)
        np.testing.assert_allclose(state[1, 0], whole[0, position], atol=1e-5)


def test_weights_are_read_and_written_by_kind(tmp_path: Path) -> None:
    period = (LayerKind(name="narrow"), LayerKind(name="wide", intermediate_size=101))
    config = tiny_config(layer_count=4, period=period)
    tensors = write_tiny_model(tmp_path, layer_count=4, period=period)
    graph, shapes = build_graph(config, "float32")
    parameters, _ = read_weights(tensors, config, shapes)
    assert parameters["layers"]["wide"]["mlp"]["up_proj"]["kernel"].shape == (2, 48, 101)
    stored = load_file(tmp_path / "model.safetensors")
    written = dict(hf_tensors(config, parameters))
    assert written.keys() == stored.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, stored[name], err_msg=name)
    assert np.isfinite(forward(graph, parameters, IDS)).all()


def test_target_that_differs_between_kinds_has_no_adapter_and_the_others_do(tmp_path: Path) -> None:
    period = (LayerKind(name="narrow"), LayerKind(name="wide", intermediate_size=101))
    config = tiny_config(layer_count=4, period=period)
    assert layer_targets(config) == ("q_proj", "k_proj", "v_proj", "o_proj")
    spec = LoraSpec(rank=2, alpha=2.0, target_modules=("gate_proj",), seed=0)
    with pytest.raises(InvalidFieldError, match=r"must be among q_proj.*lm_head, got 'gate_proj'"):
        init_adapter(config, spec, "float32")
    adapter = random_adapter(config, ("o_proj",))
    assert adapter["o_proj"]["a"].shape == (4, 48, 2)
    write_peft_adapter(adapter, spec, config, "base", tmp_path)
    exported = load_file(tmp_path / "adapter_model.safetensors")
    for layer in range(4):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_A.weight"
        np.testing.assert_array_equal(exported[name], adapter["o_proj"]["a"][layer].T)


def test_shortest_period_is_the_shortest_that_repeats_whole() -> None:
    assert shortest_period([A] * 6) == (A,)
    assert shortest_period([A, A, B] * 3) == (A, A, B)
    assert shortest_period([A, A, B, A]) == (A, A, B, A)
