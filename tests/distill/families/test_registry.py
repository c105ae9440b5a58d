"""Laws that every family keeps, on the tiny models of the parity suite: a cache, packs, loading."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.engine.decoding import place_prompt
from distill.engine.layer_parts import decode_parts
from distill.engine.packs import PackWriter
from distill.engine.weights import ModelWeights
from distill.errors import ModelError
from distill.families.registry import FAMILIES, hf_config, model_weight_entries
from distill.models.hf_weights import leaves
from distill.network.functional import (
    build_graph,
    cached_hidden_states,
    hidden_states,
    init_cache,
    packed_hidden_states,
)
from tests.distill.network.test_functional import random_model
from tests.support.parity_cases import TINY_CASES
from tests.support.suites import slow
from tests.support.tiny_models import tiny_config

NEW = ("qwen2", "mistral", "smollm3", "gemma3", "qwen3-moe-mixed")
LENGTH, PROMPT = 60, 50
"""Longer than every window of the cases; the prompt as well."""


@pytest.mark.parametrize(
    "name",
    # Windows, two rotary bases, layers without positions. The others have a bias, one window
    # everywhere, and experts, which tests of their own check in caches and packs.
    ["gemma3", "smollm3", *map(slow, ("qwen2", "mistral", "qwen3-moe-mixed"))],
)
def test_cache_and_pack_give_the_states_of_the_sequence_alone(name: str) -> None:
    case = TINY_CASES[name]
    config = tiny_config(case.family, **case.overrides)
    graph, parameters = random_model(config)
    ids = case.token_ids()[:LENGTH]
    alone = jax.jit(hidden_states, static_argnums=0)(graph, parameters, ids[None])[0]

    step = jax.jit(cached_hidden_states, static_argnums=0)
    positions = jnp.arange(LENGTH)[None]
    prompt = init_cache(config, 1, PROMPT, "float32")
    state, prompt = step(graph, parameters, ids[None, :PROMPT], positions[:, :PROMPT], prompt)
    np.testing.assert_allclose(state[0], alone[:PROMPT], atol=2e-5)
    # As sampling does it on a CPU: the layers one by one.
    parts = decode_parts(config, ModelWeights(parameters, None))
    sizes = [1] * config.layer_count
    cache = init_cache(config, 1, LENGTH, "float32", part_sizes=sizes)
    cache = place_prompt(cache, prompt, jnp.int32(0))
    for position in range(PROMPT, LENGTH):
        at = slice(position, position + 1)
        state, cache = step(graph, parameters, ids[None, at], positions[:, at], cache, parts=parts)
        np.testing.assert_allclose(state[0, 0], alone[position], atol=2e-5)

    # Behind another sequence, its first part as a prefix that two continue.
    writer = PackWriter()
    writer.add(case.token_ids()[100:131])
    start = writer.add(ids[:45])
    writer.add(case.token_ids()[200:203], (start, start + 45))
    rest = writer.add(ids[45:], (start, start + 45))
    pack = writer.pack(128)
    packed = jax.jit(packed_hidden_states, static_argnums=0)(
        graph, parameters, jnp.asarray(pack.token_ids), pack.segments
    )
    np.testing.assert_allclose(packed[start : start + 45], alone[:45], atol=2e-5)
    np.testing.assert_allclose(packed[rest : rest + 15], alone[45:], atol=2e-5)


@pytest.mark.parametrize("name", [*NEW, "llama-untied", "qwen3", "qwen3_5", "qwen3_5-moe"])
def test_every_parameter_has_a_tensor_and_every_tensor_a_place(name: str) -> None:
    case = TINY_CASES[name]
    config = tiny_config(case.family, **case.overrides)
    _, shapes = build_graph(config, "float32")
    entries = model_weight_entries(config)
    assert len({entry.path for entry in entries}) == len(list(leaves(shapes)))
    assert len({(entry.path, entry.index) for entry in entries}) == len(entries)
    assert len({entry.hf_name for entry in entries}) == len(entries)


def test_every_family_has_a_case_against_transformers() -> None:
    assert {case.family for case in TINY_CASES.values()} == set(FAMILIES)


def test_an_unknown_family_is_refused_by_name() -> None:
    config = tiny_config("mamba", tied_head=True)
    with pytest.raises(ModelError, match="'mamba' is not supported; supported: llama, qwen2"):
        model_weight_entries(config)
    with pytest.raises(ModelError, match="'mamba' is not supported; supported: llama, qwen2"):
        hf_config(config)
