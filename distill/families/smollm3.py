"""SmolLM3: every fourth layer has no rotary positions, and those layers may have windows.

https://huggingface.co/blog/smollm3, https://arxiv.org/abs/2501.18795
"""

from typing import Any

from distill.errors import ModelError
from distill.formats.attention_windows import FULL, SLIDING
from distill.formats.config_reader import ConfigReader, layer_types, whole_number
from distill.formats.family import About, Family, GgufFormat
from distill.formats.gguf_file import GgufFile
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import COMMON_LAYER_WEIGHTS, WeightMap, same_in_all
from distill.network.config import LayerAttention, ModelConfig

_INTERVAL = 4
"""Every fourth layer has no rotary positions where the file does not say which."""


def _read_config(reader: ConfigReader) -> dict[str, Any]:
    layer_count = reader.integer("num_hidden_layers")
    interval = reader.integer("no_rope_layer_interval", _INTERVAL, least=1)
    # Against its name, 1 means that a layer has rotary positions.
    turning = reader.get("no_rope_layers") or [
        int((layer + 1) % interval != 0) for layer in range(layer_count)
    ]
    if len(turning) < layer_count:
        raise ModelError(
            f"config.json: no_rope_layers must be at least {layer_count}, got {len(turning)}"
        )
    turning = turning[:layer_count]
    # Other families have a window of 4096 tokens where its size is absent; this one has none.
    is_used, size = reader.get("use_sliding_window", False), reader.get("sliding_window")
    window = None if size is None or not is_used else whole_number("sliding_window", size)
    default = [FULL if window is None or turns else SLIDING for turns in turning]
    types = layer_types(reader, default, known=(FULL, SLIDING))
    attention = tuple(
        LayerAttention(
            window=window if kind == SLIDING else None, rotary="default" if turns else "none"
        )
        for kind, turns in zip(types, turning, strict=True)
    )
    return {"layer_attention": attention}


def _write_config(config: ModelConfig) -> dict[str, Any]:
    each = config.layer_attention or (LayerAttention(),) * config.layer_count
    windows = [attention.window for attention in each]
    window = next((size for size in windows if size is not None), None)
    return {
        "no_rope_layers": [int(attention.rotary != "none") for attention in each],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [FULL if size is None else SLIDING for size in windows],
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    layers = range(int(file.require_hyperparameter("block_count")))
    return {
        "layer_attention": tuple(
            LayerAttention(rotary="default" if (layer + 1) % _INTERVAL else "none")
            for layer in layers
        )
    }


SMOLLM3 = Family(
    about=About(
        title="SmolLM3",
        checkpoints=("HuggingFaceTB/SmolLM3-3B",),
        features=("layers without rotary positions (NoPE)",),
    ),
    config=ConfigFormat(
        model_type="smollm3",
        architecture="SmolLM3ForCausalLM",
        defaults={"num_key_value_heads": 4, "rope_theta": 2000000.0, "tie_word_embeddings": True},
        read=_read_config,
        write=_write_config,
        # Transformers' class was made from Qwen2's and has the key still, but never reads it.
        irrelevant=frozenset({"max_window_layers"}),
    ),
    weights=WeightMap(
        layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS),
        # As in `llama`.
        gguf_rotary_permuted=("attn_q", "attn_k"),
    ),
    gguf=GgufFormat(architecture="smollm3", read=_read_gguf),
)
