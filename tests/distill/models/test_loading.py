"""Model directories."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from distill.errors import ModelError
from distill.families.registry import model_weight_entries
from distill.kernels.profile import ACCELERATOR, CPU, DeviceProfile
from distill.models import loading
from distill.models.loading import load_model
from distill.network.functional import Parameters
from tests.support.own_model import own_log_probs
from tests.support.parity_cases import TINY_CASES
from tests.support.tiny_models import write_tiny_model

GEMMA3 = TINY_CASES["gemma3"].overrides


def assert_equal_parameters(one: Parameters, other: Parameters) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def rewrite_weights(directory: Path, change: dict[str, Any]) -> None:
    """Replace tensors; None removes one."""
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: array for name, array in tensors.items() if array is not None}, path)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_every_parameter_is_read_from_its_tensor(
    tmp_path: Path, family: str, tied_head: bool
) -> None:
    directory = write_tiny_model(tmp_path / "m", family, tied_head=tied_head)
    model = load_model(str(directory))
    tensors = load_file(directory / "model.safetensors")
    for entry in model_weight_entries(model.config):
        leaf: Any = model.parameters
        for key in entry.path:
            leaf = leaf[key]
        leaf = leaf if entry.layer is None else leaf[entry.layer]
        expected = tensors[entry.hf_name]
        np.testing.assert_array_equal(leaf, expected.T if entry.is_transposed else expected)
    assert model.parameter_count == sum(tensor.size for tensor in tensors.values())
    assert model.name == "m"


def test_sharded_weights_equal_a_single_file(tmp_path: Path) -> None:
    single = write_tiny_model(tmp_path / "single")
    sharded = write_tiny_model(tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    weight_map = {}
    for index, name in enumerate(tensors):
        weight_map[name] = f"model-{index % 3 + 1:05d}-of-00003.safetensors"
    for file_name in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file_name}
        save_file(part, sharded / file_name)
    index_file = sharded / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    one, other = load_model(str(single)), load_model(str(sharded))
    assert_equal_parameters(one.parameters, other.parameters)
    assert one.weights_version == other.weights_version

    weight_map["model.norm.weight"] = "../single/model.safetensors"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="is not a file name"):
        load_model(str(sharded))
    weight_map["model.norm.weight"] = "absent.safetensors"
    index_file.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"no absent\.safetensors"):
        load_model(str(sharded))


def test_weights_version_follows_the_weights(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "m")
    before = load_model(str(directory)).weights_version
    assert load_model(str(directory)).weights_version == before
    norm = load_file(directory / "model.safetensors")["model.norm.weight"]
    norm[7] = np.nextafter(norm[7], np.float32(2))
    rewrite_weights(directory, {"model.norm.weight": norm})
    assert load_model(str(directory)).weights_version != before


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_stored_and_compute_types_combine(tmp_path: Path, stored: str, compute: str) -> None:
    directory = write_tiny_model(tmp_path / "m", dtype=stored)
    model = load_model(str(directory), compute_dtype=compute)
    expected = load_model(str(write_tiny_model(tmp_path / "exact")))
    kernel = model.parameters["layers"]["mlp"]["up_proj"]["kernel"]
    exact = expected.parameters["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype == jnp.dtype(compute)
    steps = exact.astype(stored).astype(compute)
    np.testing.assert_array_equal(kernel, steps)
    assert model.parameters["norm"]["scale"].dtype == jnp.float32


@pytest.mark.parametrize(("profile", "expected"), [(CPU, "float32"), (ACCELERATOR, "bfloat16")])
def test_the_automatic_dtype_is_the_fast_one_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: DeviceProfile, expected: str
) -> None:
    monkeypatch.setattr(loading, "device_profile", lambda: profile)
    model = load_model(str(write_tiny_model(tmp_path / "m")), compute_dtype="auto")
    kernel = model.parameters["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype == jnp.dtype(expected)
    assert model.parameters["norm"]["scale"].dtype == jnp.float32


def test_tensors_that_transformers_ignores_are_ignored(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "m", tied_head=True)
    before = load_model(str(directory))
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    frequencies = np.ones(4, np.float32)
    rewrite_weights(
        directory,
        {
            "lm_head.weight": embedding,
            "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies,
        },
    )
    after = load_model(str(directory))
    assert_equal_parameters(before.parameters, after.parameters)


def test_text_part_of_qwen3_5_is_loaded_without_vision_tower_and_further_heads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_tiny_model(tmp_path / "m", "qwen3_5_moe_text", tied_head=False)
    alone = load_model(str(directory))
    tensors = load_file(directory / "model.safetensors")
    others = {
        name: np.ones(3, np.float32)
        for name in ("model.visual.patch_embed.proj.weight", "mtp.layers.0.mlp.gate.weight")
    }
    # Experts as Transformers 5 holds them: two tensors for all of a layer.
    fused: dict[str, Any] = {}
    for layer in range(alone.config.layer_count):
        start = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: np.stack([tensors.pop(f"{start}.{index}.{part}.weight") for index in range(5)])
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        fused[f"{start}.gate_up_proj"] = np.concatenate(
            [parts["gate_proj"], parts["up_proj"]], axis=1
        )
        fused[f"{start}.down_proj"] = parts["down_proj"]
    renamed = {
        name.replace("model.", "model.language_model.", 1): value
        for name, value in {**tensors, **fused}.items()
    }
    assert "lm_head.weight" in renamed
    save_file(renamed | others, directory / "model.safetensors")
    whole = {
        "model_type": "qwen3_5_moe",
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "text_config": json.loads((directory / "config.json").read_text()),
        "vision_config": {},
    }
    (directory / "config.json").write_text(json.dumps(whole))
    model = load_model(str(directory))
    assert model.config == alone.config
    assert_equal_parameters(model.parameters, alone.parameters)
    assert "skipped 2 tensors that are not of the text model (model.visual.*, mtp.*" in caplog.text


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_a_model_that_sees_is_loaded_and_the_rest_skipped_and_said(
    tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_tiny_model(tmp_path / "m", "gemma3_text", **GEMMA3)
    alone = load_model(str(directory))
    tensors = load_file(directory / "model.safetensors")
    renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    vision = {"vision_tower.patch.weight": np.ones(3, np.float32)}
    save_file(renamed | vision, directory / "model.safetensors")
    text = json.loads((directory / "config.json").read_text())
    whole = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {},
    }
    (directory / "config.json").write_text(json.dumps(whole))
    model = load_model(str(directory))
    assert model.config == alone.config
    assert_equal_parameters(model.parameters, alone.parameters)
    assert model.weights_version == alone.weights_version
    assert "skipped 1 tensors that are not of the text model (vision_tower.*" in caplog.text


def test_vocabulary_beyond_the_tokenizer_is_masked_unless_told_otherwise(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "m", pads_vocabulary=True)
    model = load_model(str(directory))
    assert model.config.valid_vocab_size == model.tokenizer.vocab_size < model.config.vocab_size
    whole = load_model(str(directory), mask_padded_vocabulary=False)
    assert whole.config.valid_vocab_size == whole.config.vocab_size == 512
    log_probs = own_log_probs(model, np.arange(9, dtype=np.int32))
    assert np.isneginf(log_probs[:, model.tokenizer.vocab_size :]).all()
    logits = own_log_probs(whole, np.arange(9, dtype=np.int32))[:, : model.tokenizer.vocab_size]
    expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    np.testing.assert_allclose(log_probs[:, : model.tokenizer.vocab_size], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.norm.weight": None}, r"lack model\.norm\.weight"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"lack model\.layers\.1\.mlp\.up_proj"),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)},
            r"unknown model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            {"model.norm.weight": np.ones(47, np.float32)},
            r"model\.norm\.weight: .*asks for shape \[48\], the file has \[47\]",
        ),
        (
            {"model.layers.0.mlp.up_proj.weight": np.ones((48, 77), np.float32)},
            r"asks for shape \[77, 48\], the file has \[48, 77\]",
        ),
        ({"model.norm.weight": np.ones(48, np.int8)}, r"model\.norm\.weight: type int8"),
    ],
)
def test_wrong_weights_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    directory = write_tiny_model(tmp_path / "m")
    rewrite_weights(directory, change)
    with pytest.raises(ModelError, match=named):
        load_model(str(directory))


@pytest.mark.parametrize(
    ("file_name", "named"),
    [
        ("config.json", r"no config\.json"),
        ("tokenizer.json", r"no tokenizer\.json"),
        ("model.safetensors", r"neither model\.safetensors nor"),
    ],
)
def test_incomplete_directory_is_refused(tmp_path: Path, file_name: str, named: str) -> None:
    directory = write_tiny_model(tmp_path / "m")
    (directory / file_name).unlink()
    with pytest.raises(ModelError, match=named):
        load_model(str(directory))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_config_is_refused(tmp_path: Path, content: str) -> None:
    directory = write_tiny_model(tmp_path / "m")
    (directory / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(directory))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "m")
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load_model(str(directory))


def test_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "m", vocab_size=300)
    large = write_tiny_model(tmp_path / "large")
    (directory / "tokenizer.json").write_text((large / "tokenizer.json").read_text())
    with pytest.raises(ModelError, match="more than the model's vocabulary of 300"):
        load_model(str(directory))


def test_tokens_that_were_added_beyond_the_model_are_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_tiny_model(tmp_path / "m")
    vocab_size = load_model(str(directory)).config.vocab_size
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    filler = [f"<filler-{i}>" for i in range(vocab_size - tokenizer.get_vocab_size())]
    tokenizer.add_tokens([*filler, "<picture>"])
    tokenizer.save(str(path))
    model = load_model(str(directory))
    assert model.config.valid_vocab_size == vocab_size
    assert model.tokenizer.vocab_size == vocab_size + 1
    assert f"added tokens of ids up to {vocab_size}" in caplog.text


def test_unknown_compute_type_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "m")
    with pytest.raises(ModelError, match="must be one of auto, float32, bfloat16, got 'float16'"):
        load_model(str(directory), compute_dtype="float16")
