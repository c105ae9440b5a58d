"""The projections of a layer that an adapter can update. Knows no JAX."""

from collections.abc import Callable, Mapping

from distill.network.config import ModelConfig
from distill.network.layer_kinds import LayerKind

Projections = dict[str, tuple[int, int]]
"""(in, out) of what an adapter can update, by name."""


def _attention_projections(config: ModelConfig, _kind: LayerKind) -> Projections:
    query = config.head_count * config.head_dim
    key_value = config.key_value_head_count * config.head_dim
    gates = query if config.attention_output_gate else 0
    return {
        "q_proj": (config.hidden_size, query + gates),
        "k_proj": (config.hidden_size, key_value),
        "v_proj": (config.hidden_size, key_value),
        "o_proj": (query, config.hidden_size),
    }


def _delta_net_projections(config: ModelConfig, _kind: LayerKind) -> Projections:
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


def _dense_projections(config: ModelConfig, kind: LayerKind) -> Projections:
    width = kind.intermediate_size or config.intermediate_size
    return {
        "gate_proj": (config.hidden_size, width),
        "up_proj": (config.hidden_size, width),
        "down_proj": (width, config.hidden_size),
    }


def _no_projections(_config: ModelConfig, _kind: LayerKind) -> Projections:
    return {}


ProjectionRule = Callable[[ModelConfig, LayerKind], Projections]

MIXER_PROJECTIONS: Mapping[str, ProjectionRule] = {
    "attention": _attention_projections,
    "delta_net": _delta_net_projections,
}
MLP_PROJECTIONS: Mapping[str, ProjectionRule] = {
    "dense": _dense_projections,
    # All experts share one parameter for each projection, and have no adapters.
    "sparse": _no_projections,
}


def kind_projections(config: ModelConfig, kind: LayerKind) -> Projections:
    """(in, out) of the projections of a layer of a kind, in the layer's order."""
    return {
        **MIXER_PROJECTIONS[kind.mixer](config, kind),
        **MLP_PROJECTIONS[kind.mlp](config, kind),
    }


def projection_shapes(config: ModelConfig) -> Projections:
    """(in, out) of every projection of a model that an adapter can update, by name.

    A projection whose shape differs between kinds of layers is left out.
    """
    shapes: Projections = {}
    unequal = set()
    for kind in config.kinds:
        for target, shape in kind_projections(config, kind).items():
            if shapes.setdefault(target, shape) != shape:
                unequal.add(target)
    return {target: shape for target, shape in shapes.items() if target not in unequal}


def layers_with(config: ModelConfig, target: str) -> tuple[int, ...]:
    """The layers that have a projection, in the order of an adapter's stack."""
    having = {kind for kind in config.kinds if target in kind_projections(config, kind)}
    return tuple(layer for layer in range(config.layer_count) if config.kind_of(layer) in having)
