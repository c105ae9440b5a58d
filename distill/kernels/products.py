"""Matrix products whose sums are float32, and their gradients, in the order that runs quickest.

Written for XLA's CPU backend. On a CPU with bfloat16 instructions it multiplies bfloat16 matrices
twice as fast as float32 ones, but only where both factors lie row by row in memory, as [M, K] and
[K, N]. It never carries out a transposition by itself: it makes it a part of the product, and then
widens both factors to float32. So the functions here pin layouts, and no other module does. A
transposed float32 factor costs less: only the first one costs time, in proportion to its size.
What was measured: docs/adr/0004-measurements.md. On other devices nothing is pinned.

Letters: M rows, N columns, K what is summed over.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from distill.kernels.bits import as_bits, from_bits, values_as
from distill.kernels.profile import device_profile

MUCH_WIDER = 4
"""From this ratio of widths on, transposing the narrow factor and then the result is cheaper than
transposing the wide factor."""


def float32_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """left @ right in float32, for factors of any dtype."""
    if left.dtype == jnp.bfloat16:
        # All three are pinned: XLA hands the layout of one side on to a side without one, and
        # the program can then stop with UNIMPLEMENTED.
        left, right = row_major(left), row_major(right)
        return row_major(jnp.matmul(left, right, preferred_element_type=jnp.float32))
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def row_major(matrix: jax.Array) -> jax.Array:
    """The matrix, with its rows one after the other in memory where the device pins layouts."""
    if not device_profile().pins_layouts:
        return matrix
    pinned: jax.Array = with_layout_constraint(  # type: ignore[no-untyped-call]
        matrix, Layout((0, 1))
    )
    return pinned


def transposed(matrix: jax.Array) -> jax.Array:
    """The transpose, carried out: pinned, XLA cannot merge it with a product before or after it."""
    return row_major(row_major(matrix).T)


def left_gradient(cotangent: jax.Array, right: jax.Array) -> jax.Array:
    """The gradient [M, in] of the first factor of left @ right, float32; right is [in, out]."""
    return float32_product(cotangent, right.T)


def right_gradient(left: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The gradient [in, out] of the second factor of left @ right, float32; left is [M, in]."""
    if left.shape[1] < MUCH_WIDER * cotangent.shape[1]:
        return float32_product(left.T, cotangent)
    # Transposes the narrow factor and the result instead of the wide factor.
    return transposed(float32_product(cotangent.T, left))


@jax.custom_vjp
def product(left: jax.Array, kernel: jax.Array) -> jax.Array:
    """[M, in] @ [in, out], summed in float32, in the dtype of `left`.

    The kernel may be stored as bits, or in a wider dtype than that of `left`. The gradient keeps
    the stored kernel: were it cast first, every layer of a loop would keep a copy of its own.

    The gradients name float32 as the type of their sums as well. XLA's CPU backend runs a bfloat16
    product with a float32 sum more than twice as fast as one with a bfloat16 sum, and the gradient
    that JAX derives would multiply float32 factors. The gradients have the dtypes of `left` and of
    the kernel; a kernel of bits has none.
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
    # Nothing uses the gradient of a frozen kernel, so XLA leaves it out.
    return of_left, right_gradient(left, cotangent).astype(kernel.dtype)


product.defvjp(_forward, _backward)
