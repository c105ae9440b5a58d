"""Products with the kernel of the head, which lies as the embedding does: [V, D].

A logit is a product with the transpose of the kernel, which is too large to be transposed in each
call. What is done instead depends on the device, and each way gives the same values.

Letters: P rows, D hidden size, V vocabulary.
"""

import jax
import jax.numpy as jnp

from distill.kernels.products import float32_product, transposed
from distill.kernels.profile import device_profile

FEW_ROWS = 32
"""Up to so many rows, a CPU reads the kernel faster as the first factor of the product."""


def kernel_columns(kernel: jax.Array) -> jax.Array | None:
    """The kernel [V, D] a second time, as its columns [D, V]; None where no product gains by it.

    On a CPU, bfloat16 products with the transpose of the kernel take three times as long as with
    its columns; those of 8 rows, as when sampling, ten times.
    """
    if not device_profile().stores_head_columns or kernel.dtype != jnp.bfloat16:
        return None
    return transposed(kernel)


def head_product(
    hidden: jax.Array, kernel: jax.Array, columns: jax.Array | None = None
) -> jax.Array:
    """hidden @ kernel.T, summed in float32.

    Args:
        hidden: [P, D].
        kernel: [V, D].
        columns: [D, V], of `kernel_columns`.

    Returns:
        [P, V] float32.
    """
    row_count = hidden.shape[0]
    if columns is not None and row_count > 1:
        return float32_product(hidden, columns)
    kernel = kernel.astype(hidden.dtype)
    if device_profile().reads_head_kernel_first and 1 < row_count <= FEW_ROWS:
        return transposed(float32_product(kernel, hidden.T))
    return jnp.matmul(hidden, kernel.T, preferred_element_type=jnp.float32)


def head_kernel_gradient(hidden: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The gradient of the kernel in `head_product`, to be added to `empty_kernel_sum`.

    Args:
        hidden: [P, D].
        cotangent: [P, V], of the logits.
    """
    if device_profile().sums_head_gradient_as_columns:
        return float32_product(transposed(hidden), cotangent)
    return float32_product(cotangent.T, hidden)


def empty_kernel_sum(kernel: jax.Array) -> jax.Array:
    """Zeros to add the gradients of chunks to: [V, D] float32 as the kernel, or [D, V].

    [D, V] on a CPU, which would otherwise have to transpose the cotangent of every chunk.
    """
    as_columns = device_profile().sums_head_gradient_as_columns
    return jnp.zeros(kernel.shape[::-1] if as_columns else kernel.shape, jnp.float32)


def summed_kernel_gradient(kernel_sum: jax.Array) -> jax.Array:
    """The gradient [V, D] out of a sum that `empty_kernel_sum` began."""
    as_columns = device_profile().sums_head_gradient_as_columns
    return transposed(kernel_sum) if as_columns else kernel_sum
