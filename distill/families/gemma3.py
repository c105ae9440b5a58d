"""Gemma 3, the text model, by itself or as the text part of a model that also sees.

Local layers with a window lie between global ones, each kind with its own rotary base. Zero-centred
norms stand before and after both blocks, embeddings are scaled, and the gate of the MLP is a GELU.
https://arxiv.org/abs/2503.19786
"""

from typing import Any

from distill.errors import ModelError
from distill.formats.attention_windows import FULL, SLIDING, window_size
from distill.formats.config_reader import ConfigReader, layer_types, positive_number
from distill.formats.family import About, Family, GgufFormat
from distill.formats.gguf_file import GgufFile
from distill.formats.hf_config import ConfigFormat, HfWrapper
from distill.formats.hf_rope import format_scaling, merged_parameters, parse_scaling
from distill.formats.weight_map import (
    ATTENTION_WEIGHTS,
    DENSE_MLP_WEIGHTS,
    INPUT_NORM,
    QUERY_KEY_NORMS,
    WeightMap,
    norm,
    same_in_all,
)
from distill.network.config import LayerAttention, ModelConfig, refuse

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0

_PATTERN = 6
"""Every sixth layer is global where the file does not say which are."""


def default_types(layer_count: int, pattern: int = _PATTERN) -> list[str]:
    """Which layers are local: all but every sixth."""
    return [SLIDING if (layer + 1) % pattern else FULL for layer in range(layer_count)]


def local_and_global(types: list[str], window: int) -> tuple[LayerAttention, ...]:
    """The attention of each layer: a window and its own rotary base, or neither."""
    return tuple(
        LayerAttention(window=window, rotary="local") if kind == SLIDING else LayerAttention()
        for kind in types
    )


def _read_config(reader: ConfigReader) -> dict[str, Any]:
    layer_count = reader.integer("num_hidden_layers")
    pattern = reader.integer("sliding_window_pattern", _PATTERN, least=1)
    # Transformers writes this key beside the list of types, and never reads it.
    written = reader.get("_sliding_window_pattern", _PATTERN)
    if written != _PATTERN and not reader.get("layer_types"):
        raise refuse("_sliding_window_pattern", written, f"{_PATTERN}, or layer_types")
    types = layer_types(reader, default_types(layer_count, pattern), known=(FULL, SLIDING))
    window = window_size(reader)
    if window is None:
        raise refuse("sliding_window", None, "a number of tokens")
    return {
        "layer_attention": local_and_global(types, window),
        "query_scalar": reader.number("query_pre_attn_scalar", 256),
    }


def _write_config(config: ModelConfig) -> dict[str, Any]:
    windows = {layer.window for layer in config.layer_attention if layer.window is not None}
    if len(windows) > 1 or len(config.layer_attention) != config.layer_count:
        raise ModelError("config.layer_attention: must be of each layer, with one window")
    scalar = config.query_scalar or config.head_dim
    return {
        "layer_types": [
            FULL if layer.window is None else SLIDING for layer in config.layer_attention
        ],
        "sliding_window": next(iter(windows), 4096),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
    }


def _read_rope(reader: ConfigReader) -> dict[str, Any]:
    # Transformers 5 writes a set of parameters for each type of layer. Transformers 4 writes one
    # set, and the base of the local layers in a key of its own.
    by_type = reader.get("rope_parameters") or {}
    unknown = sorted(set(by_type) - {FULL, SLIDING})
    if unknown:
        raise refuse("rope_parameters", unknown, f"{FULL}, {SLIDING}")
    of_global, of_local = by_type.get(FULL) or {}, by_type.get(SLIDING) or {}
    if parse_scaling(of_local) is not None:
        raise refuse(
            f"rope_parameters.{SLIDING}.rope_type",
            of_local.get("rope_type", of_local.get("type")),
            "default",
        )
    return {
        "rope_theta": positive_number(
            "rope_theta", of_global.get("rope_theta") or reader.get("rope_theta", _GLOBAL_THETA)
        ),
        "rope_scaling": parse_scaling(merged_parameters(of_global, reader.get("rope_scaling"))),
        "local_rope_theta": positive_number(
            "rope_local_base_freq",
            of_local.get("rope_theta") or reader.get("rope_local_base_freq", _LOCAL_THETA),
        ),
    }


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": format_scaling(config.rope_scaling),
        "rope_local_base_freq": config.local_rope_theta,
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    layer_count = int(file.require_hyperparameter("block_count"))
    head_dim = int(file.require_hyperparameter("attention.key_length"))
    # 27B divides by another number, which the file does not hold; llama.cpp knows it by its layers.
    query_scalar = 168.0 if layer_count == 62 else float(head_dim)
    return {
        "layer_attention": local_and_global(
            default_types(layer_count),
            int(file.require_hyperparameter("attention.sliding_window")),
        ),
        "local_rope_theta": _LOCAL_THETA,
        "query_scalar": query_scalar,
    }


GEMMA3 = Family(
    about=About(
        title="Gemma 3 (text)",
        checkpoints=("google/gemma-3-270m", "google/gemma-3-4b-it"),
        features=(
            "local layers with a window between global ones",
            "two rotary bases",
            "zero-centred norms before and after each block",
            "text part of models that see",
        ),
    ),
    config=ConfigFormat(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        # The text parts of the larger models' files name no more than what differs from these.
        defaults={
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
        traits={
            "query_key_norm": True,
            "zero_centered_norms": True,
            "block_output_norms": True,
            "scaled_embedding": True,
            "activation": "gelu_tanh",
        },
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        read_rope=_read_rope,
        write_rope=_write_rope,
        read=_read_config,
        write=_write_config,
        neutral={
            "final_logit_softcapping": (),
            "attn_logit_softcapping": (),
            "use_bidirectional_attention": (False,),
        },
        wrapper=HfWrapper(
            model_type="gemma3",
            architecture="Gemma3ForConditionalGeneration",
            irrelevant=frozenset(
                {
                    "vision_config",
                    "mm_tokens_per_image",
                    "boi_token_index",
                    "eoi_token_index",
                    "image_token_index",
                }
            ),
        ),
    ),
    weights=WeightMap(
        layer_weights=same_in_all(
            INPUT_NORM,
            *ATTENTION_WEIGHTS,
            *QUERY_KEY_NORMS,
            norm(("attention_output_norm",), "post_attention_layernorm", "post_attention_norm"),
            norm(("post_attention_norm",), "pre_feedforward_layernorm", "ffn_norm"),
            *DENSE_MLP_WEIGHTS,
            norm(("mlp_output_norm",), "post_feedforward_layernorm", "post_ffw_norm"),
        ),
        # llama.cpp multiplies by the scale, so its converter adds the 1.
        gguf_norm_offset=1.0,
        # Of the models that also see, as the first releases and as Transformers 5 name them.
        text_prefixes={
            "language_model.model.": "model.",
            "language_model.lm_head.": "lm_head.",
            "model.language_model.": "model.",
        },
        skipped_prefixes=(
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ),
    ),
    gguf=GgufFormat(
        architecture="gemma3", read=_read_gguf, understood=frozenset({"attention.sliding_window"})
    ),
)
