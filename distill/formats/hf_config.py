"""`ModelConfig` from and to the config.json of Hugging Face Transformers.

A model that loads is computed as Transformers computes it. So every key is read, or is known to
change nothing, or the model is refused and the error names the key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.formats.config_reader import IRRELEVANT, NEUTRAL, ConfigReader
from distill.formats.hf_rope import read_rope, write_rope
from distill.network.config import ModelConfig, refuse

Fields = dict[str, Any]

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Transformers' names of the gates of the MLP, and ours."""


@dataclass(frozen=True, kw_only=True)
class HfWrapper:
    """A model that holds this family as its text part."""

    model_type: str
    """Its own; the text part is under `text_config`."""

    architecture: str
    """Its class name under `architectures`."""

    irrelevant: frozenset[str] = frozenset()
    """Its keys beside `text_config` that change nothing for text."""


def no_fields(_reader: ConfigReader) -> Fields:
    """Of a family whose config.json has no keys of its own."""
    return {}


def no_keys(_config: ModelConfig) -> Fields:
    """Of a family whose config.json has no keys of its own."""
    return {}


@dataclass(frozen=True, kw_only=True)
class ConfigFormat:
    """How one family appears in config.json."""

    model_type: str
    """The `model_type`: the family's name."""

    architecture: str
    """The class name under `architectures`."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What Transformers takes for keys that config.json lacks."""

    traits: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that all models of the family share and no key says."""

    activation_key: str = "hidden_act"
    """The key of the MLP's gate."""

    activation: str = "silu"
    """Transformers' name of the family's gate: no other is supported."""

    read_rope: Callable[[ConfigReader], Fields] = read_rope
    """The fields of rotary positions."""

    write_rope: Callable[[ModelConfig], Fields] = write_rope
    """The keys of rotary positions."""

    read: Callable[[ConfigReader], Fields] = no_fields
    """The fields that other families do not have, or read in another way."""

    write: Callable[[ModelConfig], Fields] = no_keys
    """The keys of those fields; the inverse of `read`."""

    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Beside NEUTRAL: options that are not computed, and their values that change nothing."""

    irrelevant: frozenset[str] = frozenset()
    """Beside IRRELEVANT: keys that change nothing."""

    wrapper: HfWrapper | None = None
    """The model that holds the family as its text part; None: there is none."""


def parse_decoder_config(raw: Mapping[str, Any], form: ConfigFormat) -> ModelConfig:
    """Read a config.json of a family.

    Raises:
        ModelError: a key is missing, wrong or unknown, or asks for something that is not
            supported; names the key.
    """
    _refuse_unsupported(raw, form.architecture)
    reader = ConfigReader(raw, form.model_type, form.defaults)
    for name in ("model_type", "architectures", "auto_map", "quantization_config"):
        reader.get(name)
    activation = reader.get(form.activation_key, form.activation)
    if activation != form.activation:
        raise refuse(form.activation_key, activation, form.activation)
    head_count = reader.integer("num_attention_heads")
    hidden_size = reader.integer("hidden_size")
    fields: Fields = {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": reader.integer("intermediate_size"),
        "layer_count": reader.integer("num_hidden_layers"),
        "head_count": head_count,
        "key_value_head_count": reader.integer("num_key_value_heads", head_count),
        "head_dim": reader.integer("head_dim", hidden_size // max(head_count, 1)),
        "norm_epsilon": reader.number("rms_norm_eps", 1e-6),
        "tied_head": bool(reader.get("tie_word_embeddings", False)),
        "max_position_count": reader.integer("max_position_embeddings"),
        "activation": ACTIVATIONS[activation],
        **form.read_rope(reader),
        **form.read(reader),
    }
    for name, allowed in {**NEUTRAL, **form.neutral}.items():
        if name not in reader.taken:
            reader.only(name, allowed)
    reader.finish(IRRELEVANT | form.irrelevant)
    return ModelConfig(**{"family": form.model_type, **form.traits, **fields})


def parse_wrapped_config(raw: Mapping[str, Any], form: ConfigFormat) -> ModelConfig:
    """Read the config.json of a model that holds a family as its text part.

    Raises:
        ModelError: as `parse_decoder_config`.
    """
    wrapper = form.wrapper
    assert wrapper is not None
    _refuse_unsupported(raw, wrapper.architecture)
    reader = ConfigReader(raw, wrapper.model_type)
    for name in ("model_type", "architectures", "auto_map", "quantization_config"):
        reader.get(name)
    text: dict[str, Any] = dict(reader.require("text_config"))
    # Some files name here the class of the text model alone, which does not matter.
    text.pop("architectures", None)
    text.setdefault("model_type", form.model_type)
    if text["model_type"] != form.model_type:
        raise refuse("text_config.model_type", text["model_type"], form.model_type)
    # Where the two differ Transformers follows the outer key.
    tied = reader.get("tie_word_embeddings")
    if tied is not None:
        text["tie_word_embeddings"] = tied
    reader.finish(IRRELEVANT | wrapper.irrelevant)
    return parse_decoder_config(text, form)


def to_hf_config(config: ModelConfig, form: ConfigFormat) -> dict[str, Any]:
    """The config.json of a model, readable by Transformers 4 and 5 and by `parse_decoder_config`.

    Token ids come from the tokenizer, and the caller adds them.
    """
    return {
        "architectures": [form.architecture],
        "model_type": form.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.head_count,
        "num_key_value_heads": config.key_value_head_count,
        "head_dim": config.head_dim,
        form.activation_key: form.activation,
        "rms_norm_eps": config.norm_epsilon,
        **form.write_rope(config),
        "tie_word_embeddings": config.tied_head,
        "max_position_embeddings": config.max_position_count,
        "attention_bias": False,
        # Where the key is absent Transformers takes the family's default, an id that a smaller
        # vocabulary may lack, and gives the embedding of that token no gradient.
        "pad_token_id": None,
        **form.write(config),
    }


def _refuse_unsupported(raw: Mapping[str, Any], architecture: str) -> None:
    architectures = raw.get("architectures") or [architecture]
    if architectures != [architecture]:
        raise refuse("architectures", architectures, architecture)
    if "AutoModelForCausalLM" in (raw.get("auto_map") or {}):
        raise refuse("auto_map", raw["auto_map"], "models without code of their own")
    quantization = raw.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", quantization)
        raise refuse("quantization_config", method, "unquantised weights, or GGUF")
