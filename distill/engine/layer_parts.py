"""How the stack of layers is cut for decoding, where every step reads all weights for few rows."""

import jax
import numpy as np

from distill.engine.weights import ModelWeights
from distill.models.functional import LayerParts


def decode_parts(weights: ModelWeights) -> LayerParts | None:
    """The layers one by one where that is quicker and costs no memory; else None: one stack.

    XLA's CPU backend cannot multiply by a slice of a stacked array in place: a scan first copies
    each layer's weights out of the stack, for every token, which takes as long as all of a step's
    matrix products for eight rows. In host memory a layer's slice is an array as well, without a
    copy. On accelerators XLA reads the slice where it lies, and arrays for each layer would be a
    second copy of the model.
    """
    layers = weights.parameters["layers"]
    leaves = jax.tree.leaves(layers)
    if [device.platform for device in leaves[0].sharding.device_set] != ["cpu"]:
        return None
    adapter = weights.adapter or {}
    return tuple(
        jax.tree.map(lambda stack, at=slice(index, index + 1): _view(stack, at), (layers, adapter))
        for index in range(leaves[0].shape[0])
    )


def _view(stack: jax.Array, layers: slice) -> jax.Array:
    # Both directions alias the host's memory where it is aligned, and keep the stack alive. A
    # later donation of the stack copies instead of overwriting it, because it is in use.
    view: jax.Array = jax.device_put(np.asarray(stack)[layers], stack.sharding)
    return view
