"""How the stack of layers is cut for decoding, where every step reads all weights for few rows."""

from typing import Any

import jax
import numpy as np

from distill.engine.weights import ModelWeights
from distill.kernels.profile import profile_of
from distill.network.config import ModelConfig
from distill.network.functional import LayerParts, layer_adapter, stacks_by_kind
from distill.network.projections import layers_with


def decode_parts(config: ModelConfig, weights: ModelWeights) -> LayerParts | None:
    """The layers one by one on a CPU, where that is quicker and costs no memory; else None.

    XLA's CPU backend cannot multiply by a slice of a stacked array in place: a scan first copies
    each layer's weights out of the stack, for every token, which takes as long as all of a step's
    matrix products for eight rows. In host memory a layer's slice is an array as well, without a
    copy. On accelerators XLA reads the slice where it lies, and arrays for each layer would be a
    second copy of the model.
    """
    stacks = stacks_by_kind(config, weights.parameters["layers"])
    leaf = jax.tree.leaves(stacks)[0]
    devices = tuple(leaf.sharding.device_set)
    if len(devices) > 1 or not profile_of(devices[0].platform).decodes_layer_by_layer:
        return None
    adapter = layer_adapter(weights.adapter)
    having = {target: layers_with(config, target) for target in adapter}
    parts = []
    for layer in range(config.layer_count):
        kind = config.kind_of(layer)
        part = {kind.name: _cut(stacks[kind.name], config.layers_of(kind).index(layer))}
        own = {
            target: _cut(pair, having[target].index(layer))
            for target, pair in adapter.items()
            if layer in having[target]
        }
        parts.append((part, own))
    return tuple(parts)


def _cut(tree: Any, index: int) -> Any:
    """One layer of stacked arrays [n, ...], as [1, ...]."""
    return jax.tree.map(lambda stack: _view(stack, slice(index, index + 1)), tree)


def _view(stack: jax.Array, layers: slice) -> jax.Array:
    # Both directions alias the host's memory where it is aligned, and keep the stack alive. A
    # later donation of the stack copies instead of overwriting it, because it is in use.
    view: jax.Array = jax.device_put(np.asarray(stack)[layers], stack.sharding)
    return view
