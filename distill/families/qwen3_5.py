"""Qwen3.5, the text model: gated delta-net layers and, every few of them, gated attention.

Rotary positions turn a part of a head. Checkpoints hold the whole model: a vision tower, and layers
that predict several tokens ahead ("mtp"), lie beside the text model. GGUF files of it are not read.
"""

from dataclasses import replace
from typing import Any

from distill.formats.config_reader import ConfigReader, layer_types
from distill.formats.family import About, Family
from distill.formats.hf_config import ConfigFormat, HfWrapper
from distill.formats.hf_rope import merged_parameters, read_theta
from distill.formats.weight_map import (
    ATTENTION_WEIGHTS,
    DENSE_MLP_WEIGHTS,
    INPUT_NORM,
    MLP_NORM,
    QUERY_KEY_NORMS,
    LayerWeight,
    WeightMap,
    projection,
)
from distill.network.config import ModelConfig, refuse
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.layer_kinds import LayerKind, shortest_period

KINDS = {
    "linear_attention": LayerKind(name="linear", mixer="delta_net"),
    "full_attention": LayerKind(name="full"),
}
"""By their names in `layer_types`."""

_DELTA_NET_KEYS = {
    "key_head_count": "linear_num_key_heads",
    "value_head_count": "linear_num_value_heads",
    "key_width": "linear_key_head_dim",
    "value_width": "linear_value_head_dim",
    "tap_count": "linear_conv_kernel_dim",
}
"""Of each field of DeltaNetConfig, the key."""


def read_layers(reader: ConfigReader, mlp: str = "dense") -> dict[str, Any]:
    """The kinds of layers, all with one kind of MLP, and the sizes of the recurrent ones."""
    interval = reader.integer("full_attention_interval", 4, least=1)
    default = [
        "linear_attention" if (layer + 1) % interval else "full_attention"
        for layer in range(reader.integer("num_hidden_layers"))
    ]
    types = layer_types(reader, default, known=KINDS)
    kinds = [replace(KINDS[name], mlp=mlp) for name in types]
    fields: dict[str, Any] = {"period": shortest_period(kinds)}
    # Read in any case: a key that nobody takes is refused.
    sizes = {field: reader.integer(key) for field, key in _DELTA_NET_KEYS.items()}
    if any(kind.mixer == "delta_net" for kind in kinds):
        fields["delta_net"] = DeltaNetConfig(**sizes)
    return fields


def write_layers(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_layers` reads."""
    names = {kind.name: name for name, kind in KINDS.items()}
    sizes = config.delta_net
    return {
        "layer_types": [names[config.kind_of(layer).name] for layer in range(config.layer_count)],
        **({key: getattr(sizes, field) for field, key in _DELTA_NET_KEYS.items()} if sizes else {}),
    }


_ROTARY_SHARE = 0.25
"""The part of a head that turns where the file does not say it."""

_MROPE_KEYS = ("mrope_section", "mrope_interleaved")
"""Which frequencies belong to which axis of a picture's positions. They are not read: text has the
same position on all three axes."""

_ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *_MROPE_KEYS)


def _read_partial_rope(reader: ConfigReader) -> dict[str, Any]:
    rope = merged_parameters(reader.get("rope_parameters"), reader.get("rope_scaling"))
    for name, value in rope.items():
        if name not in _ROPE_KEYS and value is not None:
            raise refuse(f"rope_parameters.{name}", value, ", ".join(_ROPE_KEYS))
    rope_type = rope.get("rope_type") or "default"
    if rope_type != "default":
        raise refuse("rope_type", rope_type, "default")
    share = reader.get("partial_rotary_factor", _ROTARY_SHARE)
    if rope.get("partial_rotary_factor") is not None:
        share = rope["partial_rotary_factor"]
    head_dim = reader.integer("head_dim")
    width = int(head_dim * float(share))
    return {
        "rope_theta": read_theta(reader, rope),
        "rotary_width": None if width == head_dim else width,
    }


def _write_partial_rope(config: ModelConfig) -> dict[str, Any]:
    width = config.head_dim if config.rotary_width is None else config.rotary_width
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": _share(width, config.head_dim),
            # Transformers' default is of heads that turn 64 components.
            "mrope_section": _sections(width // 2),
            "mrope_interleaved": True,
        }
    }


def _share(width: int, head_dim: int) -> float:
    """A share of the head whose product with its width is cut to `width` again."""
    share = width / head_dim
    return share if int(head_dim * share) == width else (width + 0.5) / head_dim


def _sections(pair_count: int) -> list[int]:
    """The pairs of time, height and width, as even as they can be."""
    return [(pair_count + extra) // 3 for extra in (2, 1, 0)]


def mixer_weights(kind: LayerKind) -> tuple[LayerWeight, ...]:
    """What mixes tokens in the layers of a kind, with the norm before it."""
    if kind.mixer == "delta_net":
        return (INPUT_NORM, *_DELTA_NET_WEIGHTS)
    return (INPUT_NORM, *ATTENTION_WEIGHTS, *QUERY_KEY_NORMS)


def _delta_net_weight(name: str, path: tuple[str, ...], suffix: str = "") -> LayerWeight:
    # A GGUF name must be given, but is used for nothing.
    return LayerWeight(
        path=("delta_net", *path),
        hf_name=f"linear_attn.{name}",
        gguf_name=f"linear_attn.{name}",
        suffix=suffix,
    )


_DELTA_NET_WEIGHTS = (
    *(
        projection(name, "delta_net", "linear_attn", f"linear_attn.{name}")
        for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    ),
    # [C, 1, K] in the file.
    _delta_net_weight("conv1d", ("conv1d", "kernel"), ".weight"),
    _delta_net_weight("dt_bias", ("dt_bias",)),
    _delta_net_weight("A_log", ("a_log",)),
    _delta_net_weight("norm", ("norm", "scale"), ".weight"),
    projection("out_proj", "delta_net", "linear_attn", "linear_attn.out_proj"),
)


def _layer_weights(_config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    return (*mixer_weights(kind), MLP_NORM, *DENSE_MLP_WEIGHTS)


WRAPPER = HfWrapper(
    model_type="qwen3_5",
    architecture="Qwen3_5ForConditionalGeneration",
    irrelevant=frozenset(
        {
            "vision_config",
            "language_model_only",
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        }
    ),
)
"""The model that also sees."""

QWEN3_5 = Family(
    about=About(
        title="Qwen3.5 (text)",
        checkpoints=("Qwen/Qwen3.5-0.8B",),
        features=(
            "gated delta-net layers between layers of attention",
            "gated attention with norms of queries and keys",
            "rotary positions in a part of a head",
            "zero-centred norms",
            "text part of models that see",
        ),
    ),
    config=ConfigFormat(
        model_type="qwen3_5_text",
        architecture="Qwen3_5ForCausalLM",
        defaults={
            "head_dim": 256,
            "num_key_value_heads": 4,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        },
        traits={
            "query_key_norm": True,
            "zero_centered_norms": True,
            "attention_output_gate": True,
        },
        read_rope=_read_partial_rope,
        write_rope=_write_partial_rope,
        read=read_layers,
        write=write_layers,
        neutral={
            "attn_output_gate": (True,),
            "output_gate_type": ("swish",),
            "mamba_ssm_dtype": ("float32",),
            "mlp_only_layers": ([],),
        },
        # The layers that predict several tokens ahead are not loaded.
        irrelevant=frozenset({"mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}),
        wrapper=WRAPPER,
    ),
    weights=WeightMap(
        layer_weights=_layer_weights,
        text_prefixes={"model.language_model.": "model."},
        skipped_prefixes=("model.visual.", "mtp."),
    ),
)
