"""`ModelConfig` from and to the config.json of Hugging Face Transformers.

What would change the maths and is not computed here is refused by name: a model that loads is a
model that is computed as Transformers computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError
from distill.models.config import ACTIVATION, Llama3RopeScaling, ModelConfig, refuse, require


@dataclass(frozen=True, kw_only=True)
class HfFamily:
    """How one family appears in config.json."""

    family: str
    """The `model_type`."""

    architecture: str
    """The class name under `architectures`."""

    default_head_dim: int | None
    """Head width when config.json has none; None: hidden size / heads."""

    default_key_value_head_count: int | None
    """Key and value heads when config.json has none; None: as many as query heads."""


def parse_decoder_config(raw: Mapping[str, Any], family: HfFamily) -> ModelConfig:
    """Read the fields that all families share.

    Raises:
        ModelError: a field is missing or wrong, or asks for something not supported; named.
    """
    _refuse_unsupported(raw, family)
    head_count = int(require(raw, "num_attention_heads"))
    hidden_size = int(require(raw, "hidden_size"))
    head_dim = raw.get("head_dim") or family.default_head_dim or hidden_size // max(head_count, 1)
    key_value_head_count = (
        raw.get("num_key_value_heads") or family.default_key_value_head_count or head_count
    )
    theta, scaling = _parse_rope(raw)
    return ModelConfig(
        family=family.family,
        vocab_size=int(require(raw, "vocab_size")),
        hidden_size=hidden_size,
        intermediate_size=int(require(raw, "intermediate_size")),
        layer_count=int(require(raw, "num_hidden_layers")),
        head_count=head_count,
        key_value_head_count=int(key_value_head_count),
        head_dim=int(head_dim),
        norm_epsilon=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        max_position_count=int(require(raw, "max_position_embeddings")),
    )


def to_hf_config(config: ModelConfig, family: HfFamily) -> dict[str, Any]:
    """The config.json of a model, readable by Transformers 4 and 5 and by `parse_decoder_config`.

    Token ids are the tokenizer's matter and are left to the caller.
    """
    scaling = config.rope_scaling
    rope_scaling = scaling and {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_position_count,
    }
    return {
        "architectures": [family.architecture],
        "model_type": family.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.head_count,
        "num_key_value_heads": config.key_value_head_count,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATION,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": config.max_position_count,
        "attention_bias": False,
    }


def _refuse_unsupported(raw: Mapping[str, Any], family: HfFamily) -> None:
    architectures = raw.get("architectures") or [family.architecture]
    if architectures != [family.architecture]:
        raise refuse("architectures", architectures, family.architecture)
    if "AutoModelForCausalLM" in (raw.get("auto_map") or {}):
        raise refuse("auto_map", raw["auto_map"], "models without code of their own")
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", quantization)
        raise refuse("quantization_config", method, "unquantised weights, or GGUF")
    activation = raw.get("hidden_act", ACTIVATION)
    if activation != ACTIVATION:
        raise refuse("hidden_act", activation, ACTIVATION)
    for feature in ("attention_bias", "mlp_bias", "rope_interleaved"):
        if raw.get(feature):
            raise refuse(feature, raw[feature], "False")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise refuse("partial_rotary_factor", raw["partial_rotary_factor"], "1.0")
    # Qwen writes a sliding_window that is only in force with use_sliding_window.
    if raw.get("sliding_window") is not None and raw.get("use_sliding_window", True):
        raise refuse("sliding_window", raw["sliding_window"], "full attention")
    layer_types = set(raw.get("layer_types") or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise refuse("layer_types", sorted(layer_types), "full_attention")


def _parse_rope(raw: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    # Transformers 4 keeps rope_theta beside rope_scaling; 5 puts both into rope_parameters.
    rope: Mapping[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise refuse("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    if rope_type == "default":
        return theta, None
    if rope_type != "llama3":
        raise refuse("rope_type", rope_type, "default, llama3")
    scaling = Llama3RopeScaling(
        factor=float(require(rope, "factor")),
        low_frequency_factor=float(require(rope, "low_freq_factor")),
        high_frequency_factor=float(require(rope, "high_freq_factor")),
        original_position_count=int(require(rope, "original_max_position_embeddings")),
    )
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise ModelError(
            "config.json: rope_scaling.high_freq_factor must be larger than low_freq_factor "
            f"{scaling.low_frequency_factor}, got {scaling.high_frequency_factor}"
        )
    return theta, scaling
