"""Weights out of the system: Hugging Face directories and PEFT adapters.

The names and orientations of the tensors are those of `weight_map`, read backwards.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from distill.families.registry import hf_config, model_weight_entries
from distill.files import write_json
from distill.models.hf_weights import FILE_METADATA, INDEX_FILE, MAX_SHARD_BYTES, SINGLE_FILE
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
        tensor = np.asarray(_leaf(parameters, entry.path))[entry.index]
        yield entry.hf_name, tensor.T if entry.is_transposed else tensor


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
    _write_weights(config, parameters, directory, dtype, max_shard_bytes)
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
        adapter: {"q_proj": {"a": [n, in, r], "b": [n, r, out]}, ...} as trained: not scaled, for
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


def _write_weights(
    config: ModelConfig,
    parameters: Mapping[str, Any],
    directory: Path,
    dtype: ExportDtype,
    max_shard_bytes: int,
) -> None:
    item_bytes = np.dtype(DTYPES[dtype]).itemsize
    shards: list[list[str]] = [[]]
    shard_bytes = total_bytes = 0
    for name, tensor in hf_tensors(config, parameters):
        size = tensor.size * item_bytes
        if shards[-1] and shard_bytes + size > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(name)
        shard_bytes += size
        total_bytes += size
    tensors = hf_tensors(config, parameters)
    file_of: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file_name = (
            SINGLE_FILE if len(shards) == 1 else f"model-{index:05}-of-{len(shards):05}.safetensors"
        )
        shard = {
            name: np.ascontiguousarray(tensor, dtype=DTYPES[dtype])
            for _, (name, tensor) in zip(names, tensors, strict=False)
        }
        save_file(shard, directory / file_name, FILE_METADATA)
        file_of |= dict.fromkeys(names, file_name)
    # Readers look for the one or the other: an earlier export of another size must not answer.
    (directory / (INDEX_FILE if len(shards) == 1 else SINGLE_FILE)).unlink(missing_ok=True)
    if len(shards) > 1:
        index_content = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
        write_json(directory / INDEX_FILE, index_content)


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
