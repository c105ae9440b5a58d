"""Trained weights as files that Transformers and PEFT read, streamed or written to a directory.

The names and orientations of the tensors are those by which `hf_weights` reads them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.families.registry import hf_config, model_weight_entries
from distill.formats.weight_map import WeightEntry
from distill.models.export_file import ExportFile, json_file, text_file, write_file
from distill.models.safetensors_stream import UnreadTensor, safetensors_file
from distill.models.sharded_weights import (
    FILE_METADATA,
    MAX_SHARD_BYTES,
    remove_other_weights,
    sharded_weight_files,
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

RunPiece: TypeAlias = Callable[[Callable[[], NDArray[Any]]], NDArray[Any]]
"""Runs a function where the device is, and gives its result; its exceptions pass through."""


def at_once(function: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """For callers that own the device, or whose parameters are on the host."""
    return function()


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


def hf_files(
    config: ModelConfig,
    parameters: Mapping[str, Any],
    tokenizer: TextTokenizer,
    dtype: ExportDtype = "float32",
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    run_piece: RunPiece = at_once,
) -> list[ExportFile]:
    """A whole model as the files that Transformers and `load_model` read.

    Args:
        config: the model.
        parameters: its weights. Each tensor is fetched when its file is read; it is in memory twice
            while it is transposed.
        tokenizer: its tokenizer.
        dtype: type of the stored weights.
        max_shard_bytes: weights beyond this are spread over several files and an index.
        run_piece: fetches a tensor, where the parameters are on a device that others use.
    """
    stored = np.dtype(DTYPES[dtype])
    tensors = [
        UnreadTensor(
            name=entry.hf_name,
            dtype=stored,
            shape=_stored_shape(parameters, entry),
            read=partial(_stored_tensor, parameters, entry, stored, run_piece),
        )
        for entry in model_weight_entries(config)
    ]
    ids = _token_ids(tokenizer)
    # Transformers 4 calls the field torch_dtype and 5 dtype; each reads the older name.
    described = {**hf_config(config), "torch_dtype": dtype, **ids}
    return [
        json_file("config.json", described),
        json_file("generation_config.json", ids),
        *_tokenizer_files(tokenizer),
        *sharded_weight_files(tensors, max_shard_bytes=max_shard_bytes),
    ]


def write_hf_directory(
    config: ModelConfig,
    parameters: Mapping[str, Any],
    tokenizer: TextTokenizer,
    directory: Path,
    dtype: ExportDtype = "float32",
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the files of a whole model; the arguments are those of `hf_files`.

    Args:
        config: the model.
        parameters: its weights.
        tokenizer: its tokenizer.
        directory: made if it is missing; files of the same names are replaced.
        dtype: type of the stored weights.
        max_shard_bytes: weights beyond this are spread over several files and an index.
    """
    files = hf_files(config, parameters, tokenizer, dtype, max_shard_bytes=max_shard_bytes)
    _write_files(files, directory)
    remove_other_weights(directory, {file.name for file in files})


def _write_files(files: Sequence[ExportFile], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        write_file(file, directory)


def _tokenizer_files(tokenizer: TextTokenizer) -> Iterator[ExportFile]:
    """tokenizer.json, tokenizer_config.json and, if there is a template, chat_template.jinja."""
    yield text_file("tokenizer.json", tokenizer.tokenizer_json)
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
    yield json_file("tokenizer_config.json", settings)
    if tokenizer.chat_template:
        yield text_file("chat_template.jinja", tokenizer.chat_template)


def peft_files(
    adapter: Mapping[str, Mapping[str, Any]],
    spec: LoraSpec,
    config: ModelConfig,
    base_model_name: str,
    *,
    run_piece: RunPiece = at_once,
) -> list[ExportFile]:
    """A LoRA adapter as the files that `peft.PeftModel.from_pretrained` reads.

    Args:
        adapter: {"q_proj": {"a": [n, in, r], "b": [n, r, out]}, ...} as trained. It is not scaled:
            PEFT applies alpha / rank itself.
        spec: rank, alpha and targets of the adapter.
        config: the base model.
        base_model_name: where PEFT finds the base model when it is not handed one.
        run_piece: as in `hf_files`.
    """
    having = {target: layers_with(config, target) for target in adapter}
    tensors: list[UnreadTensor] = []
    for entry in model_weight_entries(config):
        if entry.layer is None or not entry.is_transposed or entry.path[-2] not in adapter:
            continue
        target = entry.path[-2]
        place = having[target].index(entry.layer)
        module = entry.hf_name.removesuffix(".weight")
        tensors += _peft_tensors(module, adapter[target], (place,), run_piece)
    if HEAD_TARGET in adapter:
        tensors += _peft_tensors(HEAD_TARGET, adapter[HEAD_TARGET], (), run_piece)
    settings = {
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
    }
    return [
        json_file("adapter_config.json", settings),
        safetensors_file("adapter_model.safetensors", tensors, FILE_METADATA),
    ]


def write_peft_adapter(
    adapter: Mapping[str, Mapping[str, Any]],
    spec: LoraSpec,
    config: ModelConfig,
    base_model_name: str,
    directory: Path,
) -> None:
    """Write the files of a LoRA adapter; the other arguments are those of `peft_files`.

    Args:
        adapter: the adapter.
        spec: rank, alpha and targets of the adapter.
        config: the base model.
        base_model_name: where PEFT finds the base model when it is not handed one.
        directory: made if it is missing; files of the same names are replaced.
    """
    _write_files(peft_files(adapter, spec, config, base_model_name), directory)


def _peft_tensors(
    module: str, pair: Mapping[str, Any], index: tuple[int, ...], run_piece: RunPiece
) -> Iterator[UnreadTensor]:
    for part, name in (("a", "lora_A"), ("b", "lora_B")):
        stack = pair[part]
        dtype = np.dtype(stack.dtype)
        yield UnreadTensor(
            name=f"base_model.model.{module}.{name}.weight",
            dtype=dtype,
            # Torch keeps a linear map as [out, in].
            shape=tuple(stack.shape[len(index) :][::-1]),
            read=partial(_transposed, stack, index, dtype, run_piece),
        )


def _transposed(
    stack: Any, index: tuple[int, ...], dtype: np.dtype[Any], run_piece: RunPiece
) -> NDArray[Any]:
    return np.ascontiguousarray(_fetched(stack, index, run_piece).T, dtype=dtype)


def _fetched(stack: Any, index: tuple[int, ...], run_piece: RunPiece) -> NDArray[Any]:
    """One tensor of a stack on the host, and no other."""
    # Without an index a copy: JAX keeps what it has fetched from a device beside the array.
    return run_piece(lambda: np.asarray(stack[index] if index else stack.copy()))


def _tensor(parameters: Mapping[str, Any], entry: WeightEntry) -> NDArray[Any]:
    tensor: NDArray[Any] = np.asarray(_leaf(parameters, entry.path))[entry.index]
    return tensor.T if entry.is_transposed else tensor


def _stored_tensor(
    parameters: Mapping[str, Any], entry: WeightEntry, dtype: np.dtype[Any], run_piece: RunPiece
) -> NDArray[Any]:
    tensor = _fetched(_leaf(parameters, entry.path), entry.index, run_piece)
    return np.asarray(tensor.T if entry.is_transposed else tensor, dtype=dtype, order="C")


def _stored_shape(parameters: Mapping[str, Any], entry: WeightEntry) -> tuple[int, ...]:
    shape = tuple(_leaf(parameters, entry.path).shape[len(entry.index) :])
    return shape[::-1] if entry.is_transposed else shape


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
