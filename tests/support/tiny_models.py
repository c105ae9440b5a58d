"""Tiny random models on disk, in Hugging Face form, that a service can be started on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from distill.families.qwen3_5 import KINDS
from distill.families.qwen3_moe import SPARSE
from distill.families.registry import FAMILIES, hf_config, model_weight_entries
from distill.formats.weight_map import WeightEntry
from distill.network.config import Llama3RopeScaling, ModelConfig
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.functional import build_graph

SENTENCES = (
    "The teacher reads the prompt and sends the likely next tokens.",
    "The student learns from the whole distribution, not from one token.",
    "What is the capital of France? Answer: Paris.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Numbers such as 0, 17 and 2048 are split into digits.",
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "period": (SPARSE,),
        "experts": ExpertsConfig(
            expert_count=5, choice_count=2, expert_size=19, is_normalized=True
        ),
    },
    # Two periods; several value heads for a key head; a part of a head turns.
    "qwen3_5_text": {
        "layer_count": 4,
        "period": (KINDS["linear_attention"], KINDS["full_attention"]),
        "delta_net": DeltaNetConfig(
            key_head_count=2, value_head_count=6, key_width=5, value_width=7, tap_count=4
        ),
        "head_dim": 12,
        "rotary_width": 6,
    },
}
FAMILY_FIELDS["qwen3_5_moe_text"] = FAMILY_FIELDS["qwen3_5_text"] | {
    "intermediate_size": 512,
    "period": tuple(
        replace(KINDS[name], mlp="sparse") for name in ("linear_attention", "full_attention")
    ),
    "experts": ExpertsConfig(
        expert_count=5, choice_count=2, expert_size=19, is_normalized=True, shared_expert_size=13
    ),
}
"""What a family's tiny model has besides."""


def tiny_config(family: str = "llama", **overrides: Any) -> ModelConfig:
    """A config with grouped heads and odd sizes; any field of ModelConfig can be overridden."""
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": 512,
        "hidden_size": 48,
        "intermediate_size": 77,
        "layer_count": 2,
        "head_count": 6,
        "key_value_head_count": 2,
        "head_dim": 8,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "tied_head": family == "llama",
        "max_position_count": 2048,
    }
    traits = FAMILIES[family].config.traits if family in FAMILIES else {}
    return ModelConfig(**(fields | dict(traits) | FAMILY_FIELDS.get(family, {}) | overrides))


LLAMA3_ROPE = Llama3RopeScaling(
    factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_position_count=64
)
"""Stretches, interpolates and keeps frequencies of the tiny model: all three cases occur."""


def write_tiny_model(
    directory: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    pads_vocabulary: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random model with a small real tokenizer; returns the directory.

    Args:
        directory: made where it does not exist.
        family: a key of FAMILIES.
        seed: of the weights.
        dtype: of the weights in the file: "float32", "float16" or "bfloat16".
        pads_vocabulary: whether the model's vocabulary may be larger than the tokenizer's.
        overrides: fields of ModelConfig.
    """
    config = tiny_config(family, **overrides)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: tensor.astype(_numpy_dtype(dtype))
            for name, tensor in tiny_tensors(config, seed).items()
        },
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    end_id = SPECIAL_TOKENS.index("<|im_end|>")
    _write_json(directory / "config.json", {**hf_config(config), "eos_token_id": end_id})
    _write_json(directory / "generation_config.json", {"eos_token_id": end_id})
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    tokenizer = tiny_tokenizer(config.vocab_size)
    if not pads_vocabulary:
        missing = range(tokenizer.get_vocab_size(), config.vocab_size)
        tokenizer.add_tokens([AddedToken(f"<|unused {token_id}|>") for token_id in missing])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def tiny_tensors(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random tensors under their Hugging Face names, large enough that attention is not flat."""
    generator = np.random.default_rng(seed)
    _, shapes = build_graph(config, "float32")
    tensors = {}
    for entry in model_weight_entries(config):
        shape = _hf_shape(shapes, entry)
        noise = generator.standard_normal(shape, dtype=np.float32)
        match entry.path[-1]:
            case "scale":
                is_centered = config.zero_centered_norms and "delta_net" not in entry.path
                middle = 0 if is_centered else 1
                tensors[entry.hf_name] = middle + np.float32(0.1) * noise
            case "bias":
                tensors[entry.hf_name] = np.float32(0.3) * noise
            case "a_log":
                # Heads that remember a few tokens, and some that remember all.
                tensors[entry.hf_name] = noise - np.float32(2)
            case "kernel":
                tensors[entry.hf_name] = noise * np.float32(shape[1] ** -0.5)
            case _:
                tensors[entry.hf_name] = noise * np.float32(0.3)
    return tensors


def tiny_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE trained on SENTENCES: at most `vocab_size` ids, at least 259."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _hf_shape(shapes: Any, entry: WeightEntry) -> tuple[int, ...]:
    """Of a tensor in a file, from the shapes of the parameter tree."""
    for key in entry.path:
        shapes = shapes[key]
    shape: tuple[int, ...] = shapes.shape[len(entry.index) :]
    return shape[::-1] if entry.is_transposed else shape


def _numpy_dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
