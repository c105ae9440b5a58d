"""Kinds of layers: what must be equal for layers to share one stack of parameters.

A model is a *period* of kinds, repeated. Most models have one kind. Layers that differ in numbers
alone (a window, a rotary base) are of one kind; see `ModelConfig.layer_attention`. Knows no JAX.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What a layer is built of."""

    name: str = "layer"
    """Its key below "layers" in the parameter tree of a model of several kinds."""

    mixer: str = "attention"
    """What mixes tokens: a key of MIXER_PROJECTIONS, and of the family's `Decoder.mixers`. Also
    the module's name in the layer."""

    mlp: str = "dense"
    """What follows it, in "mlp": a key of MLP_PROJECTIONS, and of the family's `Decoder.mlps`."""

    intermediate_size: int | None = None
    """Width of its dense MLP; None: the config's."""


Projections = dict[str, tuple[int, int]]
"""(in, out) of what an adapter can update, by name."""


def _attention_projections(config: "ModelConfig", _kind: LayerKind) -> Projections:
    query = config.head_count * config.head_dim
    key_value = config.key_value_head_count * config.head_dim
    gates = query if config.attention_output_gate else 0
    return {
        "q_proj": (config.hidden_size, query + gates),
        "k_proj": (config.hidden_size, key_value),
        "v_proj": (config.hidden_size, key_value),
        "o_proj": (query, config.hidden_size),
    }


def _delta_net_projections(config: "ModelConfig", _kind: LayerKind) -> Projections:
    sizes = config.delta_net
    assert sizes is not None
    values = sizes.value_head_count * sizes.value_width
    return {
        "in_proj_qkv": (config.hidden_size, sizes.channel_count),
        "in_proj_z": (config.hidden_size, values),
        "in_proj_b": (config.hidden_size, sizes.value_head_count),
        "in_proj_a": (config.hidden_size, sizes.value_head_count),
        "out_proj": (values, config.hidden_size),
    }


def _dense_projections(config: "ModelConfig", kind: LayerKind) -> Projections:
    width = kind.intermediate_size or config.intermediate_size
    return {
        "gate_proj": (config.hidden_size, width),
        "up_proj": (config.hidden_size, width),
        "down_proj": (width, config.hidden_size),
    }


def _no_projections(_config: "ModelConfig", _kind: LayerKind) -> Projections:
    return {}


ProjectionRule = Callable[["ModelConfig", LayerKind], Projections]

MIXER_PROJECTIONS: Mapping[str, ProjectionRule] = {
    "attention": _attention_projections,
    "delta_net": _delta_net_projections,
}
MLP_PROJECTIONS: Mapping[str, ProjectionRule] = {
    "dense": _dense_projections,
    # Experts are one parameter for all of them, and have no adapters.
    "sparse": _no_projections,
}

RECURRENT_MIXERS = frozenset({"delta_net"})
"""Those that remember a sequence as a state and not token by token."""


def kind_projections(config: "ModelConfig", kind: LayerKind) -> Projections:
    """(in, out) of the projections of a layer of a kind, in the layer's order."""
    return {
        **MIXER_PROJECTIONS[kind.mixer](config, kind),
        **MLP_PROJECTIONS[kind.mlp](config, kind),
    }


def shortest_period(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest sequence whose whole repetitions are the given one; at worst itself."""
    count = len(kinds)
    for length in range(1, count):
        if count % length == 0 and all(kinds[i] == kinds[i % length] for i in range(count)):
            return tuple(kinds[:length])
    return tuple(kinds)
