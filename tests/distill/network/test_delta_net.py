"""Gated delta-net layers in a model: packs, and caches that padding and pieces must not change."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.engine import packs
from distill.engine.packs import PackWriter
from distill.network.adapters import DELTA_NET_TARGETS, LoraSpec, init_adapter, layer_targets
from distill.network.functional import (
    build_graph,
    cached_hidden_states,
    init_cache,
    packed_hidden_states,
)
from distill.network.projections import layers_with
from tests.distill.network.test_functional import random_model
from tests.support.tiny_models import tiny_config

CONFIG = tiny_config("qwen3_5_text", layer_count=2)
LENGTHS = (71, 1, 40)
"""Over more than a chunk, and shorter than the taps of the convolution."""
STEPS = 4
SLOTS = 128

packed_forward = jax.jit(packed_hidden_states, static_argnums=0, static_argnames="remat")
cached_forward = jax.jit(cached_hidden_states, static_argnums=0)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def sequences() -> list[Any]:
    generator = np.random.default_rng(1)
    return [
        generator.integers(0, CONFIG.vocab_size, length + STEPS).astype(np.int32)
        for length in LENGTHS
    ]


def packed(model: Any, sequences: list[Any], *, spare_slots: int = 0, **options: Any) -> list[Any]:
    """The states of sequences that share a pack."""
    writer = PackWriter(spare_slots=spare_slots)
    starts = [writer.add(sequence) for sequence in sequences]
    pack = writer.pack(SLOTS)
    states = packed_forward(*model, jnp.asarray(pack.token_ids), pack.segments, **options)
    return [
        np.asarray(states[start : start + len(sequence)])
        for start, sequence in zip(starts, sequences, strict=True)
    ]


@pytest.fixture(scope="module")
def alone(model: Any, sequences: list[Any]) -> list[Any]:
    """The states of each sequence in a pack of its own."""
    return [packed(model, [sequence])[0] for sequence in sequences]


def test_sequences_of_a_pack_are_those_sequences_alone(
    model: Any, sequences: list[Any], alone: list[Any]
) -> None:
    for states, expected in zip(packed(model, sequences), alone, strict=True):
        np.testing.assert_allclose(states, expected, atol=3e-5)


def test_empty_slots_between_sequences_change_nothing(
    model: Any, sequences: list[Any], alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "BLOCK_SLOTS", 26)
    spare_slots = SLOTS - sum(len(sequence) for sequence in sequences)
    writer = PackWriter(spare_slots=spare_slots)
    lengths = [len(sequence) for sequence in sequences]
    assert [writer.add(sequence) for sequence in sequences] != list(np.cumsum([0, *lengths[:-1]]))
    for states, expected in zip(
        packed(model, sequences, spare_slots=spare_slots), alone, strict=True
    ):
        np.testing.assert_allclose(states, expected, atol=3e-5)


def test_padded_prompts_read_in_pieces_continue_as_the_sequences_do(
    model: Any, sequences: list[Any], alone: list[Any]
) -> None:
    width = 40
    lengths = np.array(LENGTHS, np.int32)
    tokens = np.zeros((len(LENGTHS), 2 * width), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = sequences[row][:length]
    cache = init_cache(CONFIG, len(LENGTHS), SLOTS, "float32")
    for start in (0, width):
        counts = np.clip(lengths - start, 0, width).astype(np.int32)
        positions = np.broadcast_to(np.arange(start, start + width), (len(LENGTHS), width))
        states, cache = cached_forward(
            *model, tokens[:, start : start + width], positions, cache, token_counts=counts
        )
        for row, count in enumerate(counts):
            expected = alone[row][start : start + count]
            np.testing.assert_allclose(states[row, :count], expected, atol=3e-5)
    for step in range(STEPS):
        at = lengths + step
        inputs = np.array([sequences[row][position] for row, position in enumerate(at)])
        states, cache = cached_forward(*model, inputs[:, None], at[:, None], cache)
        for row, position in enumerate(at):
            np.testing.assert_allclose(states[row, 0], alone[row][position], atol=3e-5)


def test_an_adapter_on_every_projection_is_their_sum(model: Any, sequences: list[Any]) -> None:
    targets = layer_targets(CONFIG)
    assert set(DELTA_NET_TARGETS) < set(targets)
    spec = LoraSpec(rank=2, alpha=2.0, target_modules=targets, seed=3)
    fresh = init_adapter(CONFIG, spec, "float32")
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, fresh)
    graph, parameters = model
    layers = {}
    for kind in CONFIG.kinds:
        stack = dict(parameters["layers"][kind.name])
        for module in (kind.mixer, "mlp"):
            stack[module] = dict(stack[module])
            for target in set(targets) & set(stack[module]):
                pair = adapter[target]
                update = jnp.einsum("nir,nro->nio", pair["a"], pair["b"])
                place = layers_with(CONFIG, target).index(CONFIG.layers_of(kind)[0])
                kernel = stack[module][target]["kernel"] + update[place : place + 1]
                stack[module][target] = {"kernel": kernel}
        layers[kind.name] = stack
    merged = packed((graph, {**parameters, "layers": layers}), sequences)
    beside = packed(model, sequences, adapter=adapter, remat=True)
    for states, expected in zip(beside, merged, strict=True):
        np.testing.assert_allclose(states, expected, atol=2e-4)


def test_what_decays_and_what_remembers_is_float32_in_bfloat16() -> None:
    graph, shapes = build_graph(CONFIG, "bfloat16")
    net = shapes["layers"]["linear"]["delta_net"]
    assert {net[name].dtype for name in ("a_log", "dt_bias")} == {jnp.dtype("float32")}
    assert net["in_proj_qkv"]["kernel"].dtype == jnp.bfloat16
    cache = jax.eval_shape(lambda: init_cache(CONFIG, 1, SLOTS, "bfloat16"))
    tokens = jax.ShapeDtypeStruct((1, 20), jnp.int32)
    # Of the types of a forward pass: a scan refuses a carry that changes its type.
    states, after = jax.eval_shape(
        lambda *arguments: cached_hidden_states(graph, *arguments), shapes, tokens, tokens, cache
    )
    assert states.dtype == jnp.bfloat16
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
        lambda leaf: leaf.dtype, cache
    )
    assert after.parts[0]["linear"].memory.dtype == jnp.float32


def test_a_bfloat16_cache_continues_where_its_pieces_ended() -> None:
    graph, parameters = random_model(CONFIG, "bfloat16")
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 24).astype(np.int32)
    (whole,) = packed((graph, parameters), [tokens])
    cache, states = init_cache(CONFIG, 1, SLOTS, "bfloat16"), []
    for start, end in ((0, 13), (13, 23), (23, 24)):
        positions = jnp.arange(start, end)[None]
        piece, cache = cached_forward(
            graph, parameters, jnp.asarray(tokens[None, start:end]), positions, cache
        )
        states.append(np.asarray(piece[0], np.float32))
    # Of 8 bits, after two layers; a piece that forgot the one before is off by its own length.
    difference = np.concatenate(states) - np.asarray(whole, np.float32)
    assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(np.float32(whole))
