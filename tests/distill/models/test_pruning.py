"""A pruned model is the model with some layers left out, in a directory like the model's own."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from distill.errors import AlreadyExistsError, InvalidFieldError, ModelError
from distill.families.registry import hf_config, parse_hf_config
from distill.models import pruning
from distill.models.loading import load_model
from distill.models.pruning import prune, pruned_config
from distill.network.config import LayerAttention, ModelConfig
from tests.support.gguf_files import write_tiny_gguf
from tests.support.tiny_models import tiny_config, write_tiny_model

LAYERS = (0, 2, 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "source", layer_count=5, dtype="bfloat16")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_what_is_left_is_what_was_there(tmp_path: Path, family: str, tied_head: bool) -> None:
    source = write_tiny_model(tmp_path / "m", family, layer_count=5, tied_head=tied_head)
    assert prune(str(source), "0,2-3", tmp_path / "out") == LAYERS
    whole, pruned = load_model(str(source)), load_model(str(tmp_path / "out"))
    assert pruned.config.layer_count == 3
    for key, value in whole.parameters.items():
        if key == "layers":
            value = jax.tree.map(lambda leaf: leaf[np.array(LAYERS)], value)
        jax.tree.map(np.testing.assert_array_equal, pruned.parameters[key], value)
    assert pruned.weights_version != whole.weights_version
    assert pruned.tokenizer.fingerprint == whole.tokenizer.fingerprint
    assert pruned.tokenizer.end_token_ids == whole.tokenizer.end_token_ids
    assert pruned.tokenizer.chat_template == whole.tokenizer.chat_template
    record = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert record == {"source": "m", "source_layer_count": 5, "kept_layers": list(LAYERS)}


def test_weights_keep_their_type_and_files_their_readers(tmp_path: Path, source: Path) -> None:
    prune(str(source), "3", tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(path).values()} == {np.dtype(ml_dtypes.bfloat16)}
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert path.stat().st_mode & 0o444 == 0o444


def test_shards_are_read_and_written_and_hold_the_same(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(str(source), "0-2", tmp_path / "whole")
    monkeypatch.setattr(pruning, "MAX_SHARD_BYTES", 60_000)
    prune(str(source), "0-3", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    prune(str(tmp_path / "shards"), "0-2", tmp_path / "again")
    one, other = load_model(str(tmp_path / "whole")), load_model(str(tmp_path / "again"))
    assert one.weights_version == other.weights_version
    monkeypatch.undo()
    prune(str(tmp_path / "shards"), "0-2", tmp_path / "single")
    assert not (tmp_path / "single" / "model.safetensors.index.json").exists()
    assert load_model(str(tmp_path / "single")).weights_version == one.weights_version


def test_all_layers_give_the_same_model(tmp_path: Path, source: Path) -> None:
    prune(str(source), "5", tmp_path / "out")
    same = load_model(str(tmp_path / "out"))
    assert same.weights_version == load_model(str(source)).weights_version


def test_a_gguf_file_is_pruned_like_a_directory(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    prune(str(path), "1-1", tmp_path / "out", cache_dir=tmp_path / "cache")
    assert load_model(str(tmp_path / "out")).config.layer_count == 1


def test_layers_that_the_model_does_not_have_are_refused_and_nothing_is_written(
    tmp_path: Path, source: Path
) -> None:
    with pytest.raises(InvalidFieldError, match=r"keep_layers: .*the model has 5 layers; got 7"):
        prune(str(source), "0-7", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    prune(str(source), "2", tmp_path / "out")
    with pytest.raises(AlreadyExistsError, match="'out' exists"):
        prune(str(source), "2", tmp_path / "out")


def test_weights_that_are_not_there_are_named_and_nothing_is_left(
    tmp_path: Path, source: Path
) -> None:
    path = source / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"the weights lack model\.layers\.3\.mlp\.up_proj"):
        prune(str(source), "2-4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_lists_with_an_entry_for_each_layer_keep_those_of_the_layers_that_stay() -> None:
    kinds = (True, False, True, True)
    config = tiny_config(
        "smollm3",
        layer_count=4,
        layer_attention=tuple(
            LayerAttention(rotary="default" if turns else "none") for turns in kinds
        ),
    )
    # As long as the list of layers, and none of them.
    raw = hf_config(config) | {"eos_token_id": [1, 2, 3, 4]}
    pruned = pruned_config(raw, (1, 3))
    assert pruned == raw | {
        "num_hidden_layers": 2,
        "no_rope_layers": [0, 1],
        "layer_types": ["full_attention"] * 2,
    }
    assert raw["num_hidden_layers"] == 4


BY_PLACE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"layer_types": None}),
    "gemma3 of a pattern": ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 3}),
    "smollm3": ("smollm3", {"layer_types": None, "no_rope_layers": None}),
    "smollm3 of a longer list": (
        "smollm3",
        {"layer_types": None, "no_rope_layers": [1, 0] * 8},
    ),
    "qwen3_5": ("qwen3_5_text", {"layer_types": None}),
    "qwen2": (
        "qwen2",
        {
            "layer_types": None,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 5,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"decoder_sparse_step": 3, "mlp_only_layers": [2]}),
}


@pytest.mark.parametrize("case", BY_PLACE)
@pytest.mark.parametrize("layers", [(0, 1, 2, 5, 11), (3, 4, 7), (5, 11), (0, 1)])
def test_each_layer_keeps_the_kind_that_its_place_gave_it(
    case: str, layers: tuple[int, ...]
) -> None:
    family, change = BY_PLACE[case]
    gemma3 = {"layer_attention": (LayerAttention(window=7, rotary="local"),) * 2}
    fields = gemma3 | {"local_rope_theta": 1e4} if family == "gemma3_text" else {}
    raw = {
        name: value
        for name, value in (hf_config(tiny_config(family, **fields)) | change).items()
        if value is not None
    } | {"num_hidden_layers": 12}
    whole = parse_hf_config(raw)
    assert len({(layer, whole.kind_of(i)) for i, layer in enumerate(attention_of(whole))}) > 1
    pruned = parse_hf_config(pruned_config(raw, layers))
    assert pruned.layer_count == len(layers)
    assert attention_of(pruned) == [attention_of(whole)[layer] for layer in layers]
    assert [pruned.kind_of(i) for i in range(len(layers))] == [whole.kind_of(i) for i in layers]


def attention_of(config: ModelConfig) -> list[LayerAttention]:
    return list(config.layer_attention or (LayerAttention(),) * config.layer_count)


def test_a_part_of_a_larger_model_is_refused() -> None:
    with pytest.raises(ModelError, match="text_config: only a text model by itself"):
        pruned_config({"text_config": {}}, (0,))
