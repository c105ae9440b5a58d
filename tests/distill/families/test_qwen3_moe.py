"""Qwen3 MoE: its configuration, its weights in both forms, its layers of two kinds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill.engine.layer_parts import decode_parts
from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.weights import ModelWeights
from distill.errors import InvalidFieldError, ModelError
from distill.families.qwen3_moe import DENSE, SPARSE
from distill.families.registry import hf_config, parse_hf_config
from distill.models.loading import LoadedModel, load_model
from distill.models.pruning import prune
from distill.models.write_directory import hf_tensors, write_hf_directory, write_peft_adapter
from distill.network.adapters import LoraSpec, init_adapter, layer_targets
from distill.network.config import LayerAttention, ModelConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.functional import (
    cached_hidden_states,
    hidden_states,
    init_cache,
    packed_hidden_states,
)
from distill.network.packing import Segments
from tests.support.own_model import own_log_probs
from tests.support.tiny_models import tiny_config, write_tiny_model

forward = jax.jit(hidden_states, static_argnums=0)
cached_forward = jax.jit(cached_hidden_states, static_argnums=0)
packed_forward = jax.jit(packed_hidden_states, static_argnums=0)

MIXED: dict[str, Any] = {
    "layer_count": 4,
    "period": (DENSE, SPARSE),
    "experts": ExpertsConfig(expert_count=6, choice_count=3, expert_size=11, is_normalized=False),
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SPEC = LoraSpec(rank=3, alpha=6.0, target_modules=TARGETS, seed=4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3_moe", **MIXED)


@pytest.fixture(scope="module")
def model(directory: Path) -> LoadedModel:
    return load_model(str(directory))


def random_adapter(config: ModelConfig) -> Any:
    generator = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(generator.standard_normal(leaf.shape) * 0.1, leaf.dtype),
        init_adapter(config, SPEC, "float32"),
    )


def random_ids(config: ModelConfig, *shape: int) -> jax.Array:
    return jax.random.randint(jax.random.key(1), shape, 0, config.vocab_size)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        MIXED,
        {"layer_count": 3, "period": (SPARSE, DENSE, SPARSE)},
        {"layer_attention": (LayerAttention(window=9),) * 2},
        {"period": (DENSE,), "experts": None},
    ],
)
def test_written_config_is_read_back(overrides: dict[str, Any]) -> None:
    config = tiny_config("qwen3_moe", **overrides)
    assert parse_hf_config(hf_config(config)) == config


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, (SPARSE,)),
        ({"decoder_sparse_step": 2}, (DENSE, SPARSE)),
        ({"decoder_sparse_step": 3}, (DENSE, DENSE, SPARSE) * 2),
        ({"mlp_only_layers": [0, 2, 4]}, (DENSE, SPARSE)),
        ({"mlp_only_layers": [0]}, (DENSE, *(SPARSE,) * 5)),
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
            (DENSE, SPARSE, *(DENSE,) * 3, SPARSE),
        ),
        ({"mlp_only_layers": [0, 1, 2, 3, 4, 5]}, (DENSE,)),
        ({"num_experts": 0}, (DENSE,)),
    ],
)
def test_sparse_layers_are_those_of_transformers(
    change: dict[str, Any], kinds: tuple[Any, ...]
) -> None:
    raw = hf_config(tiny_config("qwen3_moe", layer_count=6))
    config = parse_hf_config({**raw, **change})
    repeats = 6 // len(kinds)
    assert [config.kind_of(layer) for layer in range(6)] == list(kinds * repeats)
    assert (config.experts is None) == (SPARSE not in kinds)


def test_the_number_of_experts_is_read_under_both_of_its_names() -> None:
    raw = hf_config(tiny_config("qwen3_moe"))
    count = raw.pop("num_experts")
    assert parse_hf_config({**raw, "num_local_experts": count}) == tiny_config("qwen3_moe")
    with pytest.raises(ModelError, match="num_experts and num_local_experts differ"):
        parse_hf_config({**raw, "num_experts": count, "num_local_experts": count + 1})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_experts_per_tok": 6}, "choice_count: must be at most the 5 experts, got 6"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must be at least 1, got 0"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size 8 is not known"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        parse_hf_config({**hf_config(tiny_config("qwen3_moe")), **change})


def fused(tensors: dict[str, Any], layer: int, expert_count: int) -> dict[str, Any]:
    """As Transformers 5 holds the experts of a layer in memory."""
    rest = dict(tensors)
    prefix = f"model.layers.{layer}.mlp.experts"

    def stack(*parts: str) -> Any:
        return np.stack(
            [
                np.concatenate([rest.pop(f"{prefix}.{expert}.{part}.weight") for part in parts])
                for expert in range(expert_count)
            ]
        )

    return {
        f"{prefix}.gate_up_proj": stack("gate_proj", "up_proj"),
        f"{prefix}.down_proj": stack("down_proj"),
        **rest,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_experts_are_the_same_model(tmp_path: Path, dtype: str) -> None:
    apart = write_tiny_model(tmp_path / "apart", "qwen3_moe", dtype=dtype, **MIXED)
    together = write_tiny_model(tmp_path / "together", "qwen3_moe", dtype=dtype, **MIXED)
    tensors = fused(fused(load_file(apart / "model.safetensors"), 1, 6), 3, 6)
    save_file(tensors, together / "model.safetensors")
    one, other = load_model(str(apart)), load_model(str(together))
    jax.tree.map(np.testing.assert_array_equal, one.parameters, other.parameters)
    assert one.weights_version == other.weights_version
    for source in (apart, together):
        prune(str(source), "1,3", tmp_path / f"pruned-{source.name}")
    one, other = (load_model(str(tmp_path / f"pruned-{name}")) for name in ("apart", "together"))
    assert one.config == other.config
    assert one.weights_version == other.weights_version


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"model.layers.1.mlp.experts.down_proj": np.zeros((6, 48, 11))}, "twice"),
        (
            {"model.layers.0.mlp.experts.down_proj": np.zeros((6, 48))},
            r"must be \[experts, out, in",
        ),
        ({"model.layers.0.mlp.experts.0.down_proj.weight": np.zeros((48, 11))}, "unknown"),
    ],
)
def test_experts_that_come_twice_or_askew_are_refused_by_name(
    directory: Path, tmp_path: Path, extra: dict[str, Any], problem: str
) -> None:
    copy = write_tiny_model(tmp_path / "m", "qwen3_moe", **MIXED)
    tensors = load_file(directory / "model.safetensors")
    extra = {name: array.astype(np.float32) for name, array in extra.items()}
    save_file({**tensors, **extra}, copy / "model.safetensors")
    with pytest.raises(ModelError, match=problem):
        load_model(str(copy))


def test_a_missing_expert_is_refused_by_name(directory: Path, tmp_path: Path) -> None:
    copy = write_tiny_model(tmp_path / "m", "qwen3_moe", **MIXED)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.3.mlp.experts.5.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelError, match=r"lack model\.layers\.3\.mlp\.experts\.5\.up_proj"):
        load_model(str(copy))


def test_exported_weights_load_as_the_same_model(model: LoadedModel, tmp_path: Path) -> None:
    write_hf_directory(model.config, model.parameters, model.tokenizer, tmp_path)
    reloaded = load_model(str(tmp_path))
    assert reloaded.config == model.config
    assert reloaded.weights_version == model.weights_version
    names = [name for name, _ in hf_tensors(model.config, model.parameters)]
    assert "model.layers.1.mlp.gate.weight" in names
    assert "model.layers.3.mlp.experts.5.down_proj.weight" in names
    assert "model.layers.0.mlp.down_proj.weight" in names


def test_the_router_is_float32_beside_bfloat16_experts(directory: Path) -> None:
    narrow = load_model(str(directory), compute_dtype="bfloat16")
    mlp = narrow.parameters["layers"]["sparse"]["mlp"]
    assert mlp["router"]["kernel"].dtype == jnp.float32
    assert mlp["experts"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    ids = np.arange(3, 40, dtype=np.int32)
    own = own_log_probs(narrow, ids)
    expected = own_log_probs(load_model(str(directory)), ids)
    assert np.abs(own - expected).mean() < 0.05


@pytest.mark.parametrize("target", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("overrides", [{}, MIXED])
def test_an_adapter_on_the_mlp_is_refused_with_the_reason(
    target: str, overrides: dict[str, Any]
) -> None:
    config = tiny_config("qwen3_moe", **overrides)
    assert layer_targets(config) == TARGETS
    spec = dataclasses.replace(SPEC, target_modules=("q_proj", target))
    with pytest.raises(InvalidFieldError, match=f"'{target}': the experts of a sparse model"):
        init_adapter(config, spec, "float32")


def test_an_exported_adapter_names_the_attention_of_every_layer(
    model: LoadedModel, tmp_path: Path
) -> None:
    adapter = random_adapter(model.config)
    write_peft_adapter(adapter, SPEC, model.config, "base", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{part}.weight"
        for layer in range(4)
        for target in TARGETS
        for part in "AB"
    }
    for layer in range(4):
        name = f"base_model.model.model.layers.{layer}.self_attn.k_proj.lora_B.weight"
        np.testing.assert_array_equal(tensors[name], adapter["k_proj"]["b"][layer].T)


@pytest.mark.parametrize("is_cut", [False, True])
def test_cached_forward_equals_the_whole(model: LoadedModel, is_cut: bool) -> None:
    config = model.config
    adapter = random_adapter(config)
    ids = random_ids(config, 2, 11)
    whole = forward(model.graph, model.parameters, ids, adapter=adapter)
    parts, sizes = None, None
    if is_cut:
        parts = decode_parts(config, ModelWeights(model.parameters, adapter))
        sizes = [1] * config.layer_count
    cache = init_cache(config, 2, 11, "float32", part_sizes=sizes)
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    state, cache = cached_forward(
        model.graph, model.parameters, ids[:, :6], positions, cache, adapter=adapter, parts=parts
    )
    np.testing.assert_allclose(state, whole[:, :6], atol=1e-5)
    for at in range(6, 11):
        state, cache = cached_forward(
            model.graph,
            model.parameters,
            ids[:, at : at + 1],
            jnp.full((2, 1), at),
            cache,
            adapter=adapter,
            parts=parts,
        )
        np.testing.assert_allclose(state[:, 0], whole[:, at], atol=1e-5)


def test_packed_equals_alone(model: LoadedModel) -> None:
    lengths = (7, 1, 12)
    sequences = [random_ids(model.config, length) for length in lengths]
    starts = np.repeat(np.cumsum((0, *lengths[:-1])), lengths)
    slots = np.arange(sum(lengths))
    nothing = np.zeros_like(slots)
    segments = Segments(slots - starts, starts, nothing, nothing)
    packed = packed_forward(model.graph, model.parameters, jnp.concatenate(sequences), segments)
    first = 0
    for sequence in sequences:
        alone = forward(model.graph, model.parameters, sequence[None])[0]
        np.testing.assert_allclose(packed[first : first + len(alone)], alone, atol=1e-5)
        first += len(alone)


@pytest.mark.slow  # what `test_cached_forward_equals_the_whole` implies
def test_greedy_samples_are_the_argmax_of_an_uncached_forward_pass(model: LoadedModel) -> None:
    prompts = [np.asarray(random_ids(model.config, length), np.int32) for length in (5, 17)]
    job = SampleJob(prompts=prompts, max_tokens=9, temperature=0.0, ignore_end_tokens=True)
    samples = Sampler(model).sample(job, ModelWeights(model.parameters, adapter=None))
    found = [sample for sample in samples if sample is not None]
    assert len(found) == 2
    for sample in found:
        whole = np.concatenate([prompts[sample.prompt_index], sample.token_ids])
        log_probs = own_log_probs(model, whole)[-1 - len(sample.token_ids) : -1]
        np.testing.assert_array_equal(log_probs.argmax(-1), sample.token_ids)
