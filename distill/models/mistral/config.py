"""Mistral's config.json. A file that does not mention the window has one of 4096 tokens."""

from typing import Any

from distill.models.attention_windows import window_size
from distill.models.config import LayerAttention, ModelConfig
from distill.models.config_reader import ConfigReader
from distill.models.hf_config import About, HfFamily


def _read(reader: ConfigReader) -> dict[str, Any]:
    window = window_size(reader)
    if window is None:
        return {}
    layer_count = reader.integer("num_hidden_layers")
    return {"layer_attention": (LayerAttention(window=window),) * layer_count}


def _write(config: ModelConfig) -> dict[str, Any]:
    windows = {attention.window for attention in config.layer_attention} or {None}
    (window,) = windows
    return {"sliding_window": window}


MISTRAL = HfFamily(
    family="mistral",
    architecture="MistralForCausalLM",
    about=About(
        title="Mistral",
        checkpoints=("mistralai/Mistral-7B-v0.3",),
        features=("a window in all layers",),
    ),
    defaults={"num_key_value_heads": 8},
    read=_read,
    write=_write,
)
