"""What a decoder is, apart from its weights: one frozen description for all families.

Knows no JAX: conversion and the export tools use it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from distill.errors import ModelError
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.layer_kinds import (
    RECURRENT_MIXERS,
    LayerKind,
    shortest_period,
)


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
class LinearRopeScaling:
    """Positions divided by a factor ("rope_type": "linear")."""

    factor: float
    """By how much all wavelengths are stretched."""


RopeScaling = Llama3RopeScaling | LinearRopeScaling

RotaryBase = Literal["default", "local", "none"]
"""Which rotary positions a layer has: those of `rope_theta` and `rope_scaling`, those of
`local_rope_theta`, or none (NoPE)."""


@dataclass(frozen=True, kw_only=True)
class LayerAttention:
    """The numbers in which the attention of one layer differs from another's."""

    window: int | None = None
    """How many tokens a token sees, itself included. None: all before it."""

    rotary: RotaryBase = "default"
    """Its rotary positions."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer with rotary positions, grouped-query attention and a gated MLP.

    Hashable, so that it can be a static argument of a compiled function.
    """

    family: str
    """In which family's files it is stored: a key of `families.registry.FAMILIES`."""

    vocab_size: int
    """V: rows of the embedding. May exceed the tokenizer's ids (padding for hardware)."""

    known_vocab_size: int | None = None
    """Token ids from here on are padding: they are no input, and have no probability. None: there
    are none. It comes from the tokenizer and not from the model's config."""

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

    rope_scaling: RopeScaling | None = None
    """How the rotary frequencies are changed. None: they are not."""

    local_rope_theta: float | None = None
    """Base of the rotary wavelengths of layers whose `rotary` is "local"; never scaled."""

    rotary_width: int | None = None
    """First components of a head that turn with the position; None: all."""

    layer_attention: tuple[LayerAttention, ...] = ()
    """One for each layer. Empty: no window, and the default rotary positions, in all layers."""

    period: tuple[LayerKind, ...] = (LayerKind(),)
    """Kinds of layers, repeated over the model; its length divides `layer_count`."""

    experts: ExpertsConfig | None = None
    """The mixture of experts of the layers whose MLP is sparse; None: no layer has one."""

    query_key_norm: bool = False
    """Whether each head's queries and keys are normed before they turn."""

    query_key_value_bias: bool = False
    """Whether the projections to queries, keys and values have biases."""

    attention_output_gate: bool = False
    """Whether `q_proj` gives each head a gate beside its query. The sigmoid of the gate multiplies
    the output of the head."""

    query_scalar: float | None = None
    """Attention scores are divided by its square root; None: by that of `head_dim`."""

    delta_net: DeltaNetConfig | None = None
    """Of the layers whose mixer is "delta_net"."""

    zero_centered_norms: bool = False
    """Whether a norm multiplies by 1 + scale."""

    block_output_norms: bool = False
    """Whether the output of attention and of the MLP is normed before it is added."""

    scaled_embedding: bool = False
    """Whether embeddings are multiplied by the square root of `hidden_size`, rounded to the
    weights' type."""

    activation: Literal["silu", "gelu_tanh"] = "silu"
    """The gate of the MLP."""

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
        if not 0 < self.valid_vocab_size <= self.vocab_size:
            raise ModelError(
                f"config.known_vocab_size: must be in [1, {self.vocab_size}], "
                f"got {self.known_vocab_size}"
            )
        if self.head_count % self.key_value_head_count:
            raise ModelError(
                f"config.key_value_head_count: must divide the {self.head_count} query heads, "
                f"got {self.key_value_head_count}"
            )
        if self.head_dim % 2:
            raise ModelError(
                f"config.head_dim: must be even for rotary positions, got {self.head_dim}"
            )
        width = self.head_dim if self.rotary_width is None else self.rotary_width
        if width % 2 or not 0 < width <= self.head_dim:
            raise ModelError(
                f"config.rotary_width: must be even and at most {self.head_dim}, got {width}"
            )
        if self.layer_attention and len(self.layer_attention) != self.layer_count:
            raise ModelError(
                f"config.layer_attention: must be of each of the {self.layer_count} layers, "
                f"got {len(self.layer_attention)}"
            )
        for attention in self.layer_attention:
            if attention.window is not None and attention.window < 1:
                raise ModelError(f"config.window: must be at least 1, got {attention.window}")
            if attention.rotary == "local" and self.local_rope_theta is None:
                raise ModelError("config.local_rope_theta: is missing")
        if not self.period or self.layer_count % len(self.period):
            raise ModelError(
                f"config.period: its length must divide the {self.layer_count} layers, "
                f"got {len(self.period)}"
            )
        if self.delta_net is None and any(kind.mixer == "delta_net" for kind in self.period):
            raise ModelError("config.delta_net: is missing")

    @property
    def is_recurrent(self) -> bool:
        """Whether a layer remembers a sequence as a state, which only the next token can continue.

        Several sequences of a pack cannot share a prefix in such a model: they would each need its
        state.
        """
        return any(kind.mixer in RECURRENT_MIXERS for kind in self.period)

    @property
    def valid_vocab_size(self) -> int:
        """Token ids lie in [0, valid_vocab_size)."""
        return self.vocab_size if self.known_vocab_size is None else self.known_vocab_size

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers there are, each once, in the order in which they first occur."""
        return tuple(dict.fromkeys(self.period))

    def kind_of(self, layer: int) -> LayerKind:
        """The kind of a layer, counted from 0."""
        return self.period[layer % len(self.period)]

    def layers_of(self, kind: LayerKind) -> tuple[int, ...]:
        """The layers of a kind, in the order of its stack."""
        return tuple(layer for layer in range(self.layer_count) if self.kind_of(layer) == kind)

    def with_layers(self, layers: Sequence[int]) -> "ModelConfig":
        """The model with only these of its layers, in this order.

        Each layer keeps its kind and its window, whatever the period of the whole model was.
        """
        kinds = [self.kind_of(layer) for layer in layers]
        attention = self.layer_attention or (LayerAttention(),) * self.layer_count
        return replace(
            self,
            layer_count=len(layers),
            layer_attention=tuple(attention[layer] for layer in layers),
            period=shortest_period(kinds),
            experts=self.experts if any(kind.mlp == "sparse" for kind in kinds) else None,
            delta_net=self.delta_net if any(kind.mixer == "delta_net" for kind in kinds) else None,
        )


def refuse(feature: str, value: object, supported: str) -> ModelError:
    """The error for a model that this code would compute wrongly."""
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
