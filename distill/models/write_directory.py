"""Trained weights as directories that Transformers and PEFT read.

The names and orientations of the tensors are those by which `hf_weights` reads them.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from distill.families.registry import hf_config, model_weight_entries
from distill.files import write_json
from distill.formats.weight_map import WeightEntry
from distill.models.sharded_weights import (
    FILE_METADATA,
    MAX_SHARD_BYTES,
    UnreadTensor,
    write_sharded_weights,
)
from distill.network.adapters import LoraSpec
from distill.network.config import ModelConfig
from distill.network.functional import HEAD_TARGET
from distill.network.projections import layers_with
from distill.tokenizer import TextTokenizer

ExportDtype = Literal["float32", "bfloat16", "float16"]

DTYPES: dict[ExportDtype, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def hf_tensors(
    config: ModelConfig, parameters: Mapping[str, Any]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of a parameter tree as Transformers names and orients them.

    Args:
        config: the model.
        parameters: the weights, or a tree of the same shape, such as their gradient.

    Yields:
        Name and tensor in the tree's dtype, in the order of the forward pass; views of the tree
        where it is in host memory.
    """
    for entry in model_weight_entries(config):
        yield entry.hf_name, _tensor(parameters, entry)


def write_hf_directory(
    config: ModelConfig,
    parameters: Mapping[str, Any],
    tokenizer: TextTokenizer,
    directory: Path,
    dtype: ExportDtype = "float32",
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a whole model so that Transformers and `load_model` read it.

    Args:
        config: the model.
        parameters: its weights.
        tokenizer: its tokenizer.
        directory: made if it is missing; files of the same names are replaced.
        dtype: type of the stored weights.
        max_shard_bytes: weights beyond this are spread over several files and an index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stored = np.dtype(DTYPES[dtype])
    tensors = [
        UnreadTensor(
            name=entry.hf_name,
            byte_count=_value_count(parameters, entry) * stored.itemsize,
            read=partial(_stored_tensor, parameters, entry, stored),
        )
        for entry in model_weight_entries(config)
    ]
    write_sharded_weights(directory, tensors, max_shard_bytes=max_shard_bytes)
    ids = _token_ids(tokenizer)
    # Transformers 4 calls the field torch_dtype and 5 dtype; each reads the older name.
    write_json(directory / "config.json", {**hf_config(config), "torch_dtype": dtype, **ids})
    write_json(directory / "generation_config.json", ids)
    write_tokenizer(tokenizer, directory)


def write_tokenizer(tokenizer: TextTokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja."""
    (directory / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    settings: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; a family's own may rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Decoding must not drop the spaces before punctuation.
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.bos_token:
        settings["bos_token"] = tokenizer.bos_token
    if tokenizer.eos_token:
        settings["eos_token"] = tokenizer.eos_token
    write_json(directory / "tokenizer_config.json", settings)
    if tokenizer.chat_template:
        template_file = directory / "chat_template.jinja"
        template_file.write_text(tokenizer.chat_template, encoding="utf-8")


def write_peft_adapter(
    adapter: Mapping[str, Mapping[str, Any]],
    spec: LoraSpec,
    config: ModelConfig,
    base_model_name: str,
    directory: Path,
) -> None:
    """Write a LoRA adapter so that `peft.PeftModel.from_pretrained` reads it.

    Args:
        adapter: {"q_proj": {"a": [n, in, r], "b": [n, r, out]}, ...} as trained. It is not scaled:
            PEFT applies alpha / rank itself.
        spec: rank, alpha and targets of the adapter.
        config: the base model.
        base_model_name: where PEFT finds the base model when it is not handed one.
        directory: made if it is missing; files of the same names are replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    host_adapter = {
        target: {part: np.asarray(matrix) for part, matrix in pair.items()}
        for target, pair in adapter.items()
    }
    having = {target: layers_with(config, target) for target in host_adapter}
    tensors: dict[str, NDArray[Any]] = {}
    for entry in model_weight_entries(config):
        if entry.layer is None or not entry.is_transposed or entry.path[-2] not in host_adapter:
            continue
        pair = host_adapter[entry.path[-2]]
        place = having[entry.path[-2]].index(entry.layer)
        layer = {part: matrix[place] for part, matrix in pair.items()}
        tensors |= _peft_tensors(entry.hf_name.removesuffix(".weight"), layer)
    if HEAD_TARGET in host_adapter:
        tensors |= _peft_tensors(HEAD_TARGET, host_adapter[HEAD_TARGET])
    save_file(tensors, directory / "adapter_model.safetensors", FILE_METADATA)
    write_json(
        directory / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model_name,
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "target_modules": list(spec.target_modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "lora_dropout": 0.0,
            "use_rslora": False,
            "inference_mode": True,
        },
    )


def _peft_tensors(module: str, pair: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    # Torch keeps a linear map as [out, in].
    return {
        f"base_model.model.{module}.{name}.weight": np.ascontiguousarray(pair[part].T)
        for part, name in (("a", "lora_A"), ("b", "lora_B"))
    }


def _tensor(parameters: Mapping[str, Any], entry: WeightEntry) -> NDArray[Any]:
    tensor: NDArray[Any] = np.asarray(_leaf(parameters, entry.path))[entry.index]
    return tensor.T if entry.is_transposed else tensor


def _stored_tensor(
    parameters: Mapping[str, Any], entry: WeightEntry, dtype: np.dtype[Any]
) -> NDArray[Any]:
    return np.ascontiguousarray(_tensor(parameters, entry), dtype=dtype)


def _value_count(parameters: Mapping[str, Any], entry: WeightEntry) -> int:
    return math.prod(_leaf(parameters, entry.path).shape[len(entry.index) :])


def _token_ids(tokenizer: TextTokenizer) -> dict[str, Any]:
    """The ids that begin and end a text, as config.json and generation_config.json have them."""
    ids: dict[str, Any] = {}
    if tokenizer.end_token_ids:
        ids["eos_token_id"] = list(tokenizer.end_token_ids)
    if tokenizer.bos_token:
        bos_ids = tokenizer.encode(tokenizer.bos_token)
        if len(bos_ids) == 1:
            ids["bos_token_id"] = bos_ids[0]
    return ids


def _leaf(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    node: Any = tree
    for key in path:
        node = node[key]
    return node
