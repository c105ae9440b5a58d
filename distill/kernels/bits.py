"""bfloat16 arrays as the integers that hold their bits, for loops that cut or fill them.

XLA's CPU backend has bfloat16 products and hardly anything else of that type. Cutting a slice out
of a bfloat16 array, or writing one into it, is done in float32 on the whole array: a loop over the
layers would widen all weights first, and rewrite the residuals of all layers once for each layer.
Integers are cut and written as they are. Viewing a whole array copies it once for each call, which
is far cheaper than what it saves; other devices cut bfloat16 as it is, and have no bits here.
"""

from collections.abc import Sequence
from typing import NoReturn, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from distill.kernels.profile import is_on_cpu

Tree = TypeVar("Tree")


def as_bits(tree: Tree) -> Tree:
    """The tree with its bfloat16 arrays viewed as uint16; on other devices than CPUs, the tree.

    Raises:
        TypeError: on a CPU, a bfloat16 array is differentiated: integers have no gradient.
    """
    if not is_on_cpu():
        return tree
    viewed: Tree = jax.tree.map(
        lambda leaf: _bits(leaf) if leaf.dtype == jnp.bfloat16 else leaf, tree
    )
    return viewed


def from_bits(tree: Tree) -> Tree:
    """What `as_bits` was given; a tree has no uint16 arrays of its own."""
    values: Tree = jax.tree.map(
        lambda leaf: _values(leaf) if leaf.dtype == jnp.uint16 else leaf, tree
    )
    return values


def bits_like(values: jax.Array, stored: jax.Array) -> jax.Array:
    """Values of any floating-point type as `stored`, which may be bits, holds them."""
    return as_bits(values.astype(jnp.bfloat16 if stored.dtype == jnp.uint16 else stored.dtype))


def zeros_as_bits(shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """`as_bits(jnp.zeros(shape, dtype))` without holding both."""
    is_viewed = is_on_cpu() and jnp.dtype(dtype) == jnp.bfloat16
    return jnp.zeros(shape, jnp.uint16 if is_viewed else dtype)


def values_as(stored: jax.Array, dtype: DTypeLike) -> jax.Array:
    """What is stored, as bits or in any dtype, in the dtype to compute in."""
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
