"""From hidden states to logits: the head's weights, and how many rows of it fit in a chunk."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from distill.kernels.products import float32_product, left_gradient, right_gradient, transposed
from distill.kernels.profile import is_on_cpu

MAX_CHUNK_BYTES = 64 << 20
"""Bound on one chunk of float32 logits, where that many rows keep the product at full speed."""

MIN_CHUNK_ROWS = 128
"""Fewer rows read the kernel of the head more often than their product can hide."""

FEW_ROWS = 32
"""Up to so many rows, a CPU reads the kernel faster as the first factor of the product."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "down", "up", "columns"),
    meta_fields=("valid_vocab_size",),
)
@dataclass(frozen=True)
class Head:
    """What maps final hidden states to logits."""

    kernel: jax.Array
    """[V, D]."""

    down: jax.Array | None = None
    """[D, r], of a low-rank update of the kernel; None: there is none."""

    up: jax.Array | None = None
    """[r, V], already scaled by alpha / rank."""

    columns: jax.Array | None = None
    """[D, V], the kernel again where `kernel_columns` has it."""

    valid_vocab_size: int | None = None
    """Tokens from here on have no probability, and no gradient. Static; None: all have."""

    @property
    def token_count(self) -> int:
        """Tokens that can have a probability."""
        rows = self.kernel.shape[0]
        return rows if self.valid_vocab_size is None else self.valid_vocab_size


def kernel_columns(kernel: jax.Array) -> jax.Array | None:
    """The kernel [V, D] once more as [D, V], where products of many rows are quicker so.

    A head lies as the embedding, which it often is. On a CPU, bfloat16 products with its transpose
    take three times as long as with a matrix that lies the other way round; those of 8 rows, as
    when sampling, ten times.
    """
    if not is_on_cpu() or kernel.dtype != jnp.bfloat16:
        return None
    return transposed(kernel)


def head_logits(hidden: jax.Array, head: Head) -> jax.Array:
    """Logits [P, V] of hidden states [P, D], float32 whatever the weights are.

    A bfloat16 logit is off by 0.06 nats at V = 151936. Those of tokens that are not valid are -inf.
    """
    logits = _kernel_logits(hidden, head)
    if head.down is not None and head.up is not None:
        narrow = float32_product(hidden, head.down.astype(hidden.dtype)).astype(hidden.dtype)
        logits = logits + float32_product(narrow, head.up.astype(hidden.dtype))
    padding = logits.shape[1] - head.token_count
    if not padding:
        return logits
    # Written over in place: a slice of the kernel, or of the logits, would be a copy of it.
    nothing = jnp.full((logits.shape[0], padding), -jnp.inf)
    return jax.lax.dynamic_update_slice(logits, nothing, (0, head.token_count))


def _kernel_logits(hidden: jax.Array, head: Head) -> jax.Array:
    row_count = hidden.shape[0]
    if head.columns is not None and row_count > 1:
        return float32_product(hidden, head.columns)
    kernel = head.kernel.astype(hidden.dtype)
    if is_on_cpu() and 1 < row_count <= FEW_ROWS:
        return transposed(float32_product(kernel, hidden.T))
    return jnp.matmul(hidden, kernel.T, preferred_element_type=jnp.float32)


def head_gradients(
    hidden: jax.Array, head: Head, cotangent: jax.Array, *, kernel_gradient: bool
) -> tuple[jax.Array, Head]:
    """The gradients of `head_logits`, float32.

    Args:
        hidden: [P, D].
        head: the weights.
        cotangent: [P, V], of the logits; 0 where a token is not valid.
        kernel_gradient: False where the kernel is frozen: its gradient is 0 then, and not computed.

    Returns:
        Of the hidden states [P, D], and of the weights: the kernel's as `empty_kernel_sum` lies,
        and a scalar 0 where frozen.
    """
    dtype = head.kernel.dtype
    cotangent = cotangent.astype(dtype)
    hidden_gradient = float32_product(cotangent, head.kernel)
    kernel = _kernel_gradient(hidden, cotangent) if kernel_gradient else jnp.float32(0.0)
    if head.down is None or head.up is None:
        return hidden_gradient, replace(head, kernel=kernel, columns=None)
    down, up = head.down.astype(dtype), head.up.astype(dtype)
    narrow = float32_product(hidden, down).astype(dtype)
    narrow_gradient = left_gradient(cotangent, up).astype(dtype)
    return hidden_gradient + left_gradient(narrow_gradient, down), replace(
        head,
        kernel=kernel,
        down=right_gradient(hidden, narrow_gradient),
        up=right_gradient(narrow, cotangent),
        columns=None,
    )


def _kernel_gradient(hidden: jax.Array, cotangent: jax.Array) -> jax.Array:
    if is_on_cpu():
        return float32_product(transposed(hidden), cotangent)
    return float32_product(cotangent.T, hidden)


def empty_kernel_sum(kernel: jax.Array) -> jax.Array:
    """Zeros to add the kernel's gradients of chunks to.

    [V, D] as the kernel, and [D, V] on a CPU, which would have to transpose each chunk's cotangent.
    """
    return jnp.zeros(kernel.shape[::-1] if is_on_cpu() else kernel.shape, jnp.float32)


def summed_kernel_gradient(kernel_sum: jax.Array) -> jax.Array:
    """The gradient [V, D] that was added up."""
    return transposed(kernel_sum) if is_on_cpu() else kernel_sum


def chunk_row_count(row_count: int, vocab_size: int) -> int:
    """Rows of logits computed at a time: a power of two, or all where they are fewer."""
    fitting = max(MIN_CHUNK_ROWS, MAX_CHUNK_BYTES // (4 * vocab_size))
    return min(row_count, 1 << (fitting.bit_length() - 1))
