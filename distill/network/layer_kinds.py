"""Kinds of layers: what must be equal for layers to share one stack of parameters.

A model is a *period* of kinds, repeated. Most models have one kind. Layers that differ in numbers
alone (a window, a rotary base) are of one kind; see `ModelConfig.layer_attention`. Knows no JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What a layer is built of."""

    name: str = "layer"
    """Its key below "layers" in the parameter tree of a model of several kinds."""

    mixer: str = "attention"
    """The module that mixes tokens, and its name in the layer: a key of `decoder.MIXERS` and of
    `projections.MIXER_PROJECTIONS`."""

    mlp: str = "dense"
    """The module "mlp" behind it: a key of `decoder.MLPS` and of `projections.MLP_PROJECTIONS`."""

    intermediate_size: int | None = None
    """Width of its dense MLP; None: the config's."""


RECURRENT_MIXERS = frozenset({"delta_net"})
"""The mixers that remember a sequence as one state, and not token by token."""


def shortest_period(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest sequence whose whole repetitions are the given one; at worst itself."""
    count = len(kinds)
    for length in range(1, count):
        if count % length == 0 and all(
            kinds[place] == kinds[place % length] for place in range(count)
        ):
            return tuple(kinds[:length])
    return tuple(kinds)
