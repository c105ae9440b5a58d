"""Matrix products whose sums are float32, and their gradients, in the order that runs quickest.

Layouts are pinned here alone, and on CPUs alone.

XLA's CPU backend multiplies bfloat16 matrices twice as fast as float32 ones, but only where both
factors lie in memory as [M, K] and [K, N]. By itself it never carries out a transposition: that
becomes part of the product, whose factors are then widened to float32. So the layouts are pinned.
Of float32 factors only the first suffers, in proportion to its size.

Letters: M rows, N columns, K what is summed over.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from distill.kernels.bits import as_bits, from_bits, values_as
from distill.kernels.profile import is_on_cpu

MUCH_WIDER = 4
"""A factor so many times as wide as another costs more to transpose than it and the result."""


def float32_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """left @ right in float32, whatever they are."""
    if left.dtype == jnp.bfloat16:
        # Both, and the result: XLA hands layouts on in either direction.
        left, right = row_major(left), row_major(right)
        return row_major(jnp.matmul(left, right, preferred_element_type=jnp.float32))
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def row_major(matrix: jax.Array) -> jax.Array:
    """The matrix, whose rows lie one after the other in a CPU's memory."""
    if not is_on_cpu():
        return matrix
    pinned: jax.Array = with_layout_constraint(  # type: ignore[no-untyped-call]
        matrix, Layout((0, 1))
    )
    return pinned


def transposed(matrix: jax.Array) -> jax.Array:
    """The transpose, which XLA does not merge with a product before or after it on a CPU."""
    return row_major(row_major(matrix).T)


def left_gradient(cotangent: jax.Array, right: jax.Array) -> jax.Array:
    """The gradient [M, in] of the first factor of left @ right, float32; right is [in, out]."""
    return float32_product(cotangent, right.T)


def right_gradient(left: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The gradient [in, out] of the second factor of left @ right, float32; left is [M, in]."""
    if left.shape[1] < MUCH_WIDER * cotangent.shape[1]:
        return float32_product(left.T, cotangent)
    # The narrow one is transposed, and then the result.
    return transposed(float32_product(cotangent.T, left))


@jax.custom_vjp
def product(left: jax.Array, kernel: jax.Array) -> jax.Array:
    """[M, in] @ [in, out], summed in float32, in the dtype of `left`.

    The kernel may be stored as bits or wider than `left`. It is kept for the gradient as it is
    stored: cast before, every layer of a loop would keep a copy of its own.

    The dtype of the sum is said in the gradients too: XLA's CPU backend runs a bfloat16 product
    with a float32 sum more than twice as fast as one with a bfloat16 sum, and JAX's own gradient
    of such a product would be one of float32 operands. They have the dtypes of `left` and of the
    kernel; bits have none.
    """
    return float32_product(left, values_as(kernel, left.dtype)).astype(left.dtype)


def _forward(left: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(left, kernel), (as_bits(left), kernel)


def _backward(
    operands: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    stored, kernel = operands
    left = from_bits(stored)
    of_left = left_gradient(cotangent, values_as(kernel, left.dtype)).astype(left.dtype)
    if kernel.dtype == jnp.uint16:
        return of_left, None
    # That of a frozen kernel is never used, and compiled away.
    return of_left, right_gradient(left, cotangent).astype(kernel.dtype)


product.defvjp(_forward, _backward)
