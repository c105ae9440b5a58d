"""bfloat16 arrays as the integers that hold their bits, for loops that cut or fill them.

Written for XLA's CPU backend, which can multiply bfloat16 and do hardly anything else with it. To
cut a slice out of a bfloat16 array, or to write one into it, the backend converts the whole array
to float32. A loop over the layers would widen all weights first, and rewrite the residuals of all
layers once for each layer. Integers are cut and written as they are. Viewing an array as integers
copies it once a call, which costs far less than it saves (docs/adr/0004-measurements.md).

Other devices cut bfloat16 as it is: there the functions here return what they are given.
"""

from collections.abc import Sequence
from typing import NoReturn, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from distill.kernels.profile import device_profile

Tree = TypeVar("Tree")


def as_bits(tree: Tree) -> Tree:
    """The tree with its bfloat16 arrays viewed as uint16, where the device's loops cut bits.

    Elsewhere the tree itself.

    Raises:
        TypeError: a viewed array is differentiated: integers have no gradient.
    """
    if not device_profile().cuts_bits:
        return tree
    viewed: Tree = jax.tree.map(
        lambda leaf: _bits(leaf) if leaf.dtype == jnp.bfloat16 else leaf, tree
    )
    return viewed


def from_bits(tree: Tree) -> Tree:
    """The tree that `as_bits` was given. No tree may hold uint16 arrays of its own."""
    values: Tree = jax.tree.map(
        lambda leaf: _values(leaf) if leaf.dtype == jnp.uint16 else leaf, tree
    )
    return values


def bits_like(values: jax.Array, stored: jax.Array) -> jax.Array:
    """Values of any floating-point type in the type of `stored`, as bits where that holds bits."""
    return as_bits(values.astype(jnp.bfloat16 if stored.dtype == jnp.uint16 else stored.dtype))


def zeros_as_bits(shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """`as_bits(jnp.zeros(shape, dtype))` without ever holding the zeros in both types."""
    is_viewed = device_profile().cuts_bits and jnp.dtype(dtype) == jnp.bfloat16
    return jnp.zeros(shape, jnp.uint16 if is_viewed else dtype)


def values_as(stored: jax.Array, dtype: DTypeLike) -> jax.Array:
    """What is stored as bits or in any dtype, converted to the dtype to compute in."""
    return from_bits(stored).astype(dtype)


@jax.custom_jvp
def _bits(array: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(array, jnp.uint16)


@_bits.defjvp
def _refuse_gradient(primals: tuple[jax.Array], _tangents: tuple[jax.Array]) -> NoReturn:
    raise TypeError(
        f"an array {primals[0].aval} is differentiated, but a loop reads it as integers, which "
        "have no gradient: hand the loop float32 weights"
    )


def _values(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.bfloat16)
