"""Mistral 7B and models of its form: in the first versions all layers have one window.

https://arxiv.org/abs/2310.06825. A config.json that does not mention the window has one of 4096
tokens. Its GGUF files call themselves Llama's and are read as such.
"""

from typing import Any

from distill.formats.attention_windows import window_size
from distill.formats.config_reader import ConfigReader
from distill.formats.family import About, Family
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import COMMON_LAYER_WEIGHTS, WeightMap, same_in_all
from distill.network.config import LayerAttention, ModelConfig


def _read_config(reader: ConfigReader) -> dict[str, Any]:
    window = window_size(reader)
    if window is None:
        return {}
    layer_count = reader.integer("num_hidden_layers")
    return {"layer_attention": (LayerAttention(window=window),) * layer_count}


def _write_config(config: ModelConfig) -> dict[str, Any]:
    (window,) = {attention.window for attention in config.layer_attention} or {None}
    return {"sliding_window": window}


MISTRAL = Family(
    about=About(
        title="Mistral",
        checkpoints=("mistralai/Mistral-7B-v0.3",),
        features=("a window in all layers",),
    ),
    config=ConfigFormat(
        model_type="mistral",
        architecture="MistralForCausalLM",
        defaults={"num_key_value_heads": 8},
        read=_read_config,
        write=_write_config,
    ),
    weights=WeightMap(layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS)),
)
