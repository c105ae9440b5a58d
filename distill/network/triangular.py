"""The inverse of a unit triangular matrix, as batched matrix products.

The solvers of LAPACK take one matrix after the other. A series of powers of the matrix would be
made of products as well, but its terms can be many orders of magnitude larger than the inverse, and
then cancel. Here small blocks are inverted row by row, by substitution, and joined by products.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LEAF = 16
"""Rows of a block that is inverted row by row."""


@jax.custom_vjp
def unit_lower_inverse(strict: jax.Array) -> jax.Array:
    """The inverse of 1 + strict, by blocks: [[a, 0], [c, d]]⁻¹ = [[a⁻¹, 0], [-d⁻¹ c a⁻¹, d⁻¹]].

    The gradient in `strict` is -Xᵀ G Xᵀ below the diagonal, with X the inverse and G the cotangent.
    The delta rule in chunks solves its corrections with it (https://arxiv.org/abs/2406.06484).

    Args:
        strict: [..., C, C], zero on and above the diagonal. Nothing checks that it is.

    Returns:
        [..., C, C], unit lower triangular.
    """
    return _inverse(strict)


def _inverse(strict: jax.Array) -> jax.Array:
    size = strict.shape[-1]
    padded = _LEAF
    while padded < size:
        padded *= 2
    widths = ((0, 0),) * (strict.ndim - 2) + ((0, padded - size),) * 2
    whole = jnp.pad(strict, widths)
    inverse = _invert_by_rows(_blocks(whole, _LEAF, below=False))
    block = _LEAF
    while block < padded:
        # The inverse of [[a, 0], [low, d]] is [[a⁻¹, 0], [-d⁻¹ low a⁻¹, d⁻¹]].
        low = _blocks(whole, block, below=True)
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -jnp.matmul(lower, jnp.matmul(low, upper))
        top = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :size, :size]


def _blocks(matrix: jax.Array, size: int, *, below: bool) -> jax.Array:
    """The blocks on the diagonal [..., n, size, size], or every second one of those below it."""
    count = matrix.shape[-1] // size
    split = matrix.reshape(*matrix.shape[:-2], count, size, count, size)
    if below:
        places = [(column + 1, column) for column in range(0, count, 2)]
    else:
        places = [(place, place) for place in range(count)]
    return jnp.stack([split[..., row, :, column, :] for row, column in places], axis=-3)


def _invert_by_rows(strict: jax.Array) -> jax.Array:
    """By substitution: each row of the inverse is computed from the rows above it."""
    size = strict.shape[-1]
    unit = jnp.broadcast_to(jnp.eye(size, dtype=strict.dtype), strict.shape)

    def substitute(row: jax.Array, inverse: jax.Array) -> Any:
        # From this row on `inverse` still holds the unit matrix, and the factors there are zero.
        factors = lax.dynamic_index_in_dim(strict, row, axis=-2, keepdims=False)
        above = (factors[..., None] * inverse).sum(-2)
        own = lax.dynamic_index_in_dim(unit, row, axis=-2, keepdims=False)
        return lax.dynamic_update_index_in_dim(inverse, own - above, row, axis=-2)

    # A loop in the program: unrolled, it would take longer to compile than everything around it.
    inverse: jax.Array = lax.fori_loop(1, size, substitute, unit)
    return inverse


def _forward(strict: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse(strict)
    return inverse, inverse


def _backward(inverse: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    turned = inverse.swapaxes(-1, -2)
    return (-jnp.tril(jnp.matmul(turned, jnp.matmul(cotangent, turned)), -1),)


unit_lower_inverse.defvjp(_forward, _backward)
