"""What a layer keeps of its forward pass for the gradient.

Norms, rotations and the gate of the MLP are quick to compute again and as wide as the products
they are made of. With the products alone there is less to write and to read between the passes:
training an adapter of SmolLM2-135M on two CPU cores took 4.3 s a call of 1024 tokens, not 4.75.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from distill.models.layer_kinds import LayerKind
from distill.ops.bits import as_bits, from_bits

_KEPT = "kept"
_CAST = "cast"

Result = TypeVar("Result")


def keep(array: jax.Array) -> jax.Array:
    """The same array, kept for the gradient: computing it again would cost a product."""
    return _keep_bits(array) if array.dtype == jnp.bfloat16 else _named(array)


@jax.custom_jvp
def _keep_bits(array: jax.Array) -> jax.Array:
    return from_bits(_named(as_bits(array)))


@_keep_bits.defjvp
def _keep_bits_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return from_bits(_named(as_bits(primals[0]))), tangents[0]


def _named(array: jax.Array) -> jax.Array:
    named: jax.Array = checkpoint_name(array, _KEPT)  # type: ignore[no-untyped-call]
    return named


def cast_weights(stored: Any, dtypes: Sequence[DTypeLike]) -> Any:
    """A layer's weights in the dtypes that it computes in, cast anew for the gradient.

    Args:
        stored: a tree of arrays, `as_bits`; such as the float32 weights that are trained.
        dtypes: one for each leaf.
    """
    leaves, structure = jax.tree.flatten(from_bits(stored))
    cast = [
        checkpoint_name(leaf.astype(dtype), _CAST)  # type: ignore[no-untyped-call]
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]
    return jax.tree.unflatten(structure, cast)


def kept_for_gradient(
    layer: Callable[..., Result], kind: LayerKind, *, remat: bool
) -> Callable[..., Result]:
    """The layer with a gradient that recomputes some of it.

    Args:
        layer: a function of arrays.
        kind: of the layer. One whose products are not all marked by `keep` recomputes its
            `cast_weights` alone.
        remat: recompute all but the layer's inputs.
    """
    # A scan is its own barrier against merging the recomputation with the forward pass.
    if remat:
        return jax.checkpoint(layer, prevent_cse=False)
    policies = jax.checkpoint_policies
    policy = (
        policies.save_only_these_names(_KEPT)
        if (kind.mixer, kind.mlp) == ("attention", "dense")
        else policies.save_anything_except_these_names(_CAST)
    )
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
