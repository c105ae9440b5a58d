"""Reads a config.json and refuses the keys that nobody has read. Knows no JAX."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distill.errors import ModelError
from distill.network.config import refuse, require

IRRELEVANT = frozenset(
    {
        # How the file was made, and what it is called.
        "_name_or_path",
        "transformers_version",
        "tokenizer_class",
        "prefix",
        "transformers.js_config",
        # Types of numbers, and which code computes: the caller chooses them.
        "dtype",
        "torch_dtype",
        "use_bfloat16",
        "use_cache",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "_experts_implementation",
        "torchscript",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "chunk_size_feed_forward",
        "pretraining_tp",
        "tf_legacy_loss",
        "is_llama_config",
        # Training.
        "initializer_range",
        "attention_dropout",
        "hidden_dropout",
        "dropout",
        # Token ids: they are read with the tokenizer.
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "bad_words_ids",
        # Other tasks, and encoders.
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "is_decoder",
        "tie_encoder_decoder",
        "cross_attention_hidden_size",
        # How text is generated: a request says that.
        "max_length",
        "min_length",
        "max_new_tokens",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "cache_implementation",
    }
)
"""Keys of any family that change nothing in what is computed here."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
    "partial_rotary_factor": (1.0,),
}
"""Options that no family here computes, and the values with which they change nothing."""


class ConfigReader:
    """The keys of a config.json, each taken by what reads it; `finish` refuses the rest."""

    def __init__(
        self, raw: Mapping[str, Any], family: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Args:
        raw: the content of config.json.
        family: whose it is, for messages.
        defaults: what Transformers takes for keys that are absent.
        """
        self._raw = raw
        self._family = family
        self._defaults = defaults or {}
        self.taken: set[str] = set()
        """Keys that have been read."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key; the family's default, or else the one given, where it is absent."""
        self.taken.add(name)
        value = self._raw.get(name)
        return self._defaults.get(name, default) if value is None else value

    def has(self, name: str) -> bool:
        """Whether the file has the key, be it as null."""
        self.taken.add(name)
        return name in self._raw

    def require(self, name: str) -> Any:
        """The value of a key that must be there.

        Raises:
            ModelError: it is not.
        """
        value = self.get(name)
        return require({name: value}, name)

    def integer(self, name: str, default: int | None = None, *, least: int | None = None) -> int:
        """A whole number; must be there unless there is a default.

        Raises:
            ModelError: it is not there, something else is, or it is below `least`.
        """
        value = self.require(name) if default is None else self.get(name, default)
        return whole_number(name, value, least=least)

    def number(self, name: str, default: float) -> float:
        """A number greater than 0.

        Raises:
            ModelError: it is something else.
        """
        return positive_number(name, self.get(name, default))

    def only(self, name: str, allowed: Collection[Any]) -> None:
        """Take an option that is not computed here: absent, null, or one of a few values.

        Raises:
            ModelError: it has another value.
        """
        value = self.get(name)
        if value is not None and not any(_is_same(value, one) for one in allowed):
            raise refuse(name, value, " or ".join(repr(one) for one in allowed) or "none")

    def finish(self, irrelevant: Collection[str]) -> None:
        """Refuse the keys that have not been read.

        Raises:
            ModelError: there is such a key, and it is not irrelevant.
        """
        unknown = sorted(set(self._raw) - self.taken - set(irrelevant))
        if unknown:
            name = unknown[0]
            raise ModelError(
                f"config.json: {name} {self._raw[name]!r} is not known to the family "
                f"{self._family}; known: {', '.join(sorted(self.taken))}"
            )


def layer_types(
    reader: ConfigReader, default: Sequence[str], *, known: Collection[str]
) -> list[str]:
    """The `layer_types` of a model, one for each layer.

    Args:
        reader: of the file.
        default: what Transformers takes where the file has none.
        known: the types that the family has.

    Raises:
        ModelError: another type, or not as many as layers.
    """
    types: list[str] = list(reader.get("layer_types") or default)
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise refuse("layer_types", unknown, ", ".join(known))
    layer_count = reader.integer("num_hidden_layers")
    if len(types) != layer_count:
        raise ModelError(
            f"config.json: layer_types must be {layer_count}, as num_hidden_layers, "
            f"got {len(types)}"
        )
    return types


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """The value of a key that is an integer.

    Raises:
        ModelError: it is none, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"config.json: {name} must be a whole number, got {value!r}")
    if least is not None and value < least:
        raise ModelError(f"config.json: {name} must be at least {least}, got {value}")
    return value


def positive_number(name: str, value: Any) -> float:
    """The value of a key as a float.

    Raises:
        ModelError: it is no number, or not greater than 0.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ModelError(f"config.json: {name} must be a number greater than 0, got {value!r}")
    return float(value)


def _is_same(value: Any, other: Any) -> bool:
    # In Python 0 == False and 1.0 == True; a config.json that says 0 does not say false.
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
