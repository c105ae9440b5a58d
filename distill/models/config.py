"""What a decoder is, apart from its weights: one frozen description for all families.

Knows no JAX: conversion and the export tools use it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Llama3RopeScaling:
    """Llama 3's stretching of the low rotary frequencies ("rope_type": "llama3").

    Wavelengths longer than `original_position_count / low_frequency_factor` are stretched by
    `factor`, those shorter than `original_position_count / high_frequency_factor` are kept, and
    those between are interpolated (https://arxiv.org/abs/2407.21783).
    """

    factor: float
    """By how much the longest wavelengths are stretched."""

    low_frequency_factor: float
    """Bounds the wavelengths that are stretched in full."""

    high_frequency_factor: float
    """Bounds the wavelengths that are kept. Larger than `low_frequency_factor`."""

    original_position_count: int
    """Positions the model saw before it was stretched."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with rotary positions, grouped-query attention and a gated MLP.

    Hashable, so that it can be a static argument of a compiled function.
    """

    family: str
    """Which family's modules and weight names it uses: "llama" or "qwen3"."""

    vocab_size: int
    """V: rows of the embedding. May exceed the tokenizer's ids (padding for hardware)."""

    hidden_size: int
    """D."""

    intermediate_size: int
    """Width of the MLP."""

    layer_count: int
    """L."""

    head_count: int
    """Query heads."""

    key_value_head_count: int
    """Key and value heads; divides `head_count`."""

    head_dim: int
    """Width of one head. Not always `hidden_size / head_count`."""

    norm_epsilon: float
    """Added to the mean square in RMSNorm."""

    rope_theta: float
    """Base of the rotary wavelengths."""

    rope_scaling: Llama3RopeScaling | None = None
    """How the rotary frequencies are changed; None: not."""

    tied_head: bool
    """Whether the head is the embedding."""

    max_position_count: int
    """Longest sequence the model was made for, in tokens."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "layer_count",
            "head_count",
            "key_value_head_count",
            "head_dim",
            "max_position_count",
        ):
            if getattr(self, name) < 1:
                raise ModelError(f"config.{name}: must be at least 1, got {getattr(self, name)}")
        if self.head_count % self.key_value_head_count:
            raise ModelError(
                f"config.key_value_head_count: must divide the {self.head_count} query heads, "
                f"got {self.key_value_head_count}"
            )
        if self.head_dim % 2:
            raise ModelError(
                f"config.head_dim: must be even for rotary positions, got {self.head_dim}"
            )

    @property
    def projection_shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the seven projections of a layer, by name."""
        query = self.head_count * self.head_dim
        key_value = self.key_value_head_count * self.head_dim
        return {
            "q_proj": (self.hidden_size, query),
            "k_proj": (self.hidden_size, key_value),
            "v_proj": (self.hidden_size, key_value),
            "o_proj": (query, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }


ACTIVATION = "silu"
"""The only gate of the MLP that both families use."""


def refuse(feature: str, value: object, supported: str) -> ModelError:
    """The error for a model that the modules here would compute wrongly."""
    return ModelError(f"config.json: {feature} {value!r} is not supported; supported: {supported}")


def require(raw: Mapping[str, Any], name: str) -> Any:
    """The value under `name`.

    Raises:
        ModelError: it is absent.
    """
    value = raw.get(name)
    if value is None:
        raise ModelError(f"config.json: {name} is missing")
    return value
