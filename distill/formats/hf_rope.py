"""Rotary positions in config.json, as Transformers 4 and 5 write them. Knows no JAX."""

from collections.abc import Mapping
from typing import Any

from distill.errors import ModelError
from distill.formats.config_reader import ConfigReader, positive_number, whole_number
from distill.network.config import (
    LinearRopeScaling,
    Llama3RopeScaling,
    ModelConfig,
    RopeScaling,
    refuse,
    require,
)

ROPE_TYPES = ("default", "linear", "llama3")

_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The keys of each type, beside _SHARED_KEYS."""

_SHARED_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def read_rope(reader: ConfigReader) -> dict[str, Any]:
    """The fields of a model with one kind of rotary positions."""
    # Transformers 4 keeps rope_theta beside rope_scaling; 5 puts both into rope_parameters.
    rope = merged_parameters(reader.get("rope_parameters"), reader.get("rope_scaling"))
    return {"rope_theta": read_theta(reader, rope), "rope_scaling": parse_scaling(rope)}


def read_theta(reader: ConfigReader, rope: Mapping[str, Any]) -> float:
    """The base of the wavelengths: that among the parameters `rope`, or else that of the file."""
    theta = reader.number("rope_theta", 10000.0)
    if rope.get("rope_theta") is None:
        return theta
    return positive_number("rope_theta", rope["rope_theta"])


def merged_parameters(
    new: Mapping[str, Any] | None, old: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """What a file says of frequencies as `rope_parameters` and as `rope_scaling`, together.

    Raises:
        ModelError: they contradict each other, so that Transformers' version decides.
    """
    # "type" is the earlier name of "rope_type".
    first, second = (
        {
            "rope_type" if name == "type" else name: value
            for name, value in (given or {}).items()
            if value is not None
        }
        for given in (new, old)
    )
    if any(first[name] != second[name] for name in first.keys() & second.keys()):
        raise ModelError(
            "config.json: rope_parameters and rope_scaling must say the same where both are given, "
            f"got {new} and {old}"
        )
    return first | second


def parse_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """How the frequencies are changed; None: not.

    Raises:
        ModelError: a type or a key is not supported.
    """
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise refuse("rope_type", rope_type, ", ".join(ROPE_TYPES))
    known = (*_SHARED_KEYS, *_KEYS[rope_type])
    for name, value in rope.items():
        if name not in known and value is not None:
            raise refuse(f"rope_parameters.{name}", value, ", ".join(known))
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise refuse("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    if rope_type == "default":
        return None
    if rope_type == "linear":
        return LinearRopeScaling(factor=_positive(rope, "factor"))
    scaling = Llama3RopeScaling(
        factor=_positive(rope, "factor"),
        low_frequency_factor=_positive(rope, "low_freq_factor"),
        high_frequency_factor=_positive(rope, "high_freq_factor"),
        original_position_count=whole_number(
            "rope_parameters.original_max_position_embeddings",
            require(rope, "original_max_position_embeddings"),
            least=1,
        ),
    )
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise ModelError(
            "config.json: rope_parameters.high_freq_factor must be larger than low_freq_factor "
            f"{scaling.low_frequency_factor}, got {scaling.high_frequency_factor}"
        )
    return scaling


def _positive(rope: Mapping[str, Any], name: str) -> float:
    return positive_number(f"rope_parameters.{name}", require(rope, name))


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_rope` reads, as Transformers 4 and 5 read them."""
    return {"rope_theta": config.rope_theta, "rope_scaling": format_scaling(config.rope_scaling)}


def format_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The inverse of `parse_scaling`; None where nothing is scaled."""
    match scaling:
        case None:
            return None
        case LinearRopeScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3RopeScaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_position_count,
            }
