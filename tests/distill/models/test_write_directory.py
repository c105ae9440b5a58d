"""Exports read back: by `load_model`, and by the definition of a low-rank update."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill.models.loading import LoadedModel, load_model
from distill.models.write_directory import hf_tensors, write_hf_directory, write_peft_adapter
from distill.network.adapters import ADAPTER_TARGETS, LoraSpec, init_adapter, scale_adapter
from distill.network.functional import Adapter
from distill.network.projections import projection_shapes
from tests.support.own_model import own_log_probs
from tests.support.tiny_models import tiny_tensors, write_tiny_model

TOKEN_IDS = np.arange(3, 40, dtype=np.int32)
SPEC = LoraSpec(rank=3, alpha=7.5, target_modules=ADAPTER_TARGETS, seed=4)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(write_tiny_model(tmp_path_factory.mktemp("model"), request.param)))


def random_adapter(model: LoadedModel, spec: LoraSpec = SPEC) -> Adapter:
    """With b other than zero, as after training."""
    adapter = init_adapter(model.config, spec, jnp.float32)
    key = jax.random.key(spec.seed + 1)
    return {
        target: {"a": pair["a"], "b": 0.1 * jax.random.normal(key, pair["b"].shape)}
        for target, pair in adapter.items()
    }


def test_named_tensors_are_the_inverse_of_loading(model: LoadedModel) -> None:
    stored = tiny_tensors(model.config)
    exported = dict(hf_tensors(model.config, model.parameters))
    assert exported.keys() == stored.keys()
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, stored[name])


def test_exported_directory_loads_as_the_same_model(model: LoadedModel, tmp_path: Path) -> None:
    write_hf_directory(model.config, model.parameters, model.tokenizer, tmp_path)
    reloaded = load_model(str(tmp_path))
    assert reloaded.config == model.config
    assert reloaded.weights_version == model.weights_version
    assert reloaded.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert reloaded.tokenizer.tokenizer_json == model.tokenizer.tokenizer_json
    assert reloaded.tokenizer.chat_template == model.tokenizer.chat_template
    assert reloaded.tokenizer.bos_token == model.tokenizer.bos_token
    assert reloaded.tokenizer.eos_token == model.tokenizer.eos_token
    assert reloaded.tokenizer.end_token_ids == model.tokenizer.end_token_ids
    jax.tree.map(np.testing.assert_array_equal, reloaded.parameters, model.parameters)


def test_sharded_export_loads_as_the_same_model(model: LoadedModel, tmp_path: Path) -> None:
    write_hf_directory(
        model.config, model.parameters, model.tokenizer, tmp_path, max_shard_bytes=100_000
    )
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == 4 * model.parameter_count
    assert load_model(str(tmp_path)).weights_version == model.weights_version


def test_export_over_an_earlier_one_leaves_nothing_of_it_to_be_read(
    model: LoadedModel, tmp_path: Path
) -> None:
    zeros = jax.tree.map(jnp.zeros_like, model.parameters)
    for max_shard_bytes in (100_000, 1 << 30, 100_000):
        write_hf_directory(model.config, zeros, model.tokenizer, tmp_path, max_shard_bytes=1 << 30)
        write_hf_directory(
            model.config,
            model.parameters,
            model.tokenizer,
            tmp_path,
            max_shard_bytes=max_shard_bytes,
        )
        assert load_model(str(tmp_path)).weights_version == model.weights_version


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_narrow_export_rounds_each_weight_to_the_nearest(
    model: LoadedModel, tmp_path: Path, dtype: str, relative: float
) -> None:
    write_hf_directory(model.config, model.parameters, model.tokenizer, tmp_path, dtype)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype.name for tensor in stored.values()} == {dtype}
    reloaded = load_model(str(tmp_path))
    jax.tree.map(
        # float16 is subnormal, and its rounding absolute, below 6e-5.
        lambda own, original: np.testing.assert_allclose(own, original, rtol=relative, atol=3e-8),
        reloaded.parameters,
        model.parameters,
    )


def test_peft_tensors_added_to_the_base_give_the_adapted_model(
    model: LoadedModel, tmp_path: Path
) -> None:
    adapter = random_adapter(model)
    write_peft_adapter(adapter, SPEC, model.config, "a-base", tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    merged = tiny_tensors(model.config)
    for name in list(tensors):
        if ".lora_A." not in name:
            continue
        update = tensors.pop(name.replace("lora_A", "lora_B")) @ tensors.pop(name)
        hf_name = name.removeprefix("base_model.model.").replace(".lora_A", "")
        merged[hf_name] = merged[hf_name] + scale * update
    assert tensors == {}

    directory = tmp_path / "merged"
    write_hf_directory(model.config, model.parameters, model.tokenizer, directory)
    save_file(merged, directory / "model.safetensors", {"format": "pt"})
    adapted = own_log_probs(model, TOKEN_IDS, scale_adapter(adapter, SPEC.scale))
    np.testing.assert_allclose(
        own_log_probs(load_model(str(directory)), TOKEN_IDS), adapted, rtol=0, atol=2e-5
    )
    # The adapter is large enough to be seen missing.
    assert np.abs(own_log_probs(model, TOKEN_IDS) - adapted).max() > 0.01


def test_peft_adapter_has_the_chosen_targets_only(model: LoadedModel, tmp_path: Path) -> None:
    spec = LoraSpec(rank=2, alpha=4.0, target_modules=("v_proj", "down_proj"), seed=1)
    write_peft_adapter(random_adapter(model, spec), spec, model.config, "a-base", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = projection_shapes(model.config)
    expected = {}
    for layer in range(model.config.layer_count):
        for module, target in (("self_attn", "v_proj"), ("mlp", "down_proj")):
            in_features, out_features = shapes[target]
            prefix = f"base_model.model.model.layers.{layer}.{module}.{target}"
            expected[f"{prefix}.lora_A.weight"] = (2, in_features)
            expected[f"{prefix}.lora_B.weight"] = (out_features, 2)
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["v_proj", "down_proj"]
    assert settings["base_model_name_or_path"] == "a-base"
