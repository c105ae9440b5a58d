"""Tiny random models as GGUF files, written the way llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType
from numpy.typing import NDArray

from distill.families.registry import family_named, model_weight_entries
from distill.network.config import ModelConfig
from tests.support.tiny_models import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    tiny_config,
    tiny_tensors,
    tiny_tokenizer,
)

# Q8_0 has blocks of 32 along a row, so every row must be a multiple of 32.
GGUF_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_count": 4,
    "key_value_head_count": 2,
    "head_dim": 16,
}


def tiny_gguf_config(family: str = "llama", **overrides: Any) -> ModelConfig:
    """The config of `write_tiny_gguf`."""
    return tiny_config(family, **(GGUF_SIZES | overrides))


def write_tiny_gguf(
    path: Path,
    family: str = "llama",
    *,
    tensor_type: GGMLQuantizationType = GGMLQuantizationType.F16,
    pre: str = "gpt-2",
    metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, NDArray[np.float32]] | None = None,
    **overrides: Any,
) -> Path:
    """Write the model of `tiny_tensors(tiny_gguf_config(family))` as GGUF; returns the path.

    Args:
        path: of the file.
        family: a key of FAMILIES whose GGUF files are read.
        tensor_type: of the matrices; norms are always F32.
        pre: `tokenizer.ggml.pre`.
        metadata: further keys below the architecture's, int, float or str.
        extra_tensors: further tensors, F32.
        overrides: fields of ModelConfig.
    """
    config = tiny_gguf_config(family, **overrides)
    files = family_named(family)
    assert files.gguf is not None
    architecture = files.gguf.architecture
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.layer_count)
    writer.add_context_length(config.max_position_count)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.head_count)
    writer.add_head_count_kv(config.key_value_head_count)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    for key, value in (metadata or {}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    _add_tokenizer(writer, config, pre)
    tensors = tiny_tensors(config)
    for entry in model_weight_entries(config):
        tensor = tensors[entry.hf_name]
        if family in ("llama", "smollm3") and ".attn_q." in entry.gguf_name:
            tensor = _permute(tensor, config.head_count)
        if family in ("llama", "smollm3") and ".attn_k." in entry.gguf_name:
            tensor = _permute(tensor, config.key_value_head_count)
        if family == "gemma3_text" and entry.path[-1] == "scale":
            tensor = tensor + np.float32(1)
        kind = tensor_type if tensor.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(entry.gguf_name, gguf.quantize(tensor, kind), raw_dtype=kind)
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permute(weights: NDArray[np.float32], head_count: int) -> NDArray[np.float32]:
    """llama.cpp's order: component 2i of a head is Transformers' i, 2i + 1 its i + half."""
    rows, columns = weights.shape
    half = rows // head_count // 2
    permuted = np.empty_like(weights)
    for head in range(head_count):
        start = head * 2 * half
        permuted[start : start + 2 * half : 2] = weights[start : start + half]
        permuted[start + 1 : start + 2 * half : 2] = weights[start + half : start + 2 * half]
    assert permuted.shape == (rows, columns)
    return permuted


def _add_tokenizer(writer: gguf.GGUFWriter, config: ModelConfig, pre: str) -> None:
    source = json.loads(tiny_tokenizer(config.vocab_size).to_str())
    ids = {token_id: token for token, token_id in source["model"]["vocab"].items()}
    ids |= {entry["id"]: entry["content"] for entry in source["added_tokens"]}
    tokens = [ids[token_id] for token_id in range(len(ids))]
    types = [TokenType.CONTROL if token in SPECIAL_TOKENS else TokenType.NORMAL for token in tokens]
    # The converter pads the list to the rows of the embedding.
    padding = config.vocab_size - len(tokens)
    tokens += [f"[PAD{len(tokens) + index}]" for index in range(padding)]
    types += [TokenType.UNUSED] * padding
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in source["model"]["merges"]])
    writer.add_bos_token_id(SPECIAL_TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(SPECIAL_TOKENS.index("<|im_end|>"))
    writer.add_chat_template(CHAT_TEMPLATE)
