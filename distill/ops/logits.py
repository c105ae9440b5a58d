"""From hidden states to logits: the head's weights, and how many rows of it fit in a chunk.

Letters: P rows of a chunk, D hidden size, V vocabulary, r rank.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from distill.kernels.head_kernel import head_kernel_gradient, head_product
from distill.kernels.products import float32_product, left_gradient, right_gradient

MAX_CHUNK_BYTES = 64 << 20
"""Bound on one chunk of float32 logits, where that many rows keep the product at full speed."""

MIN_CHUNK_ROWS = 128
"""Fewer rows read the kernel of the head more often than their product can hide."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "down", "up", "columns"),
    meta_fields=("valid_vocab_size",),
)
@dataclass(frozen=True)
class Head:
    """The weights that map final hidden states to logits."""

    kernel: jax.Array
    """[V, D]."""

    down: jax.Array | None = None
    """[D, r], of a low-rank update of the kernel; None: there is none."""

    up: jax.Array | None = None
    """[r, V], already scaled by alpha / rank."""

    columns: jax.Array | None = None
    """[D, V], the kernel again, where `kernel_columns` stores it so."""

    valid_vocab_size: int | None = None
    """Tokens from here on have no probability, and no gradient. Static; None: all have."""

    @property
    def token_count(self) -> int:
        """Tokens that can have a probability."""
        rows = self.kernel.shape[0]
        return rows if self.valid_vocab_size is None else self.valid_vocab_size


def head_logits(hidden: jax.Array, head: Head) -> jax.Array:
    """z = h W^T + (h A) B, float32 whatever the weights are; A and B of LoRA, where there are any.

    A bfloat16 logit would be off by 0.06 nats at V = 151936. Low-rank updates:
    https://arxiv.org/abs/2106.09685.

    >>> head = Head(jnp.array([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]), valid_vocab_size=2)
    >>> print(head_logits(jnp.array([[3.0, 4.0]]), head))
    [[  3.   8. -inf]]

    Args:
        hidden: [P, D].
        head: the weights.

    Returns:
        [P, V]; -inf at tokens that are not valid.
    """
    logits = head_product(hidden, head.kernel, head.columns)
    if head.down is not None and head.up is not None:
        narrow = float32_product(hidden, head.down.astype(hidden.dtype)).astype(hidden.dtype)
        logits = logits + float32_product(narrow, head.up.astype(hidden.dtype))
    padding = logits.shape[1] - head.token_count
    if not padding:
        return logits
    # Written over in place: to cut the padding off the kernel, or the logits, would copy them.
    nothing = jnp.full((logits.shape[0], padding), -jnp.inf)
    return jax.lax.dynamic_update_slice(logits, nothing, (0, head.token_count))


def head_gradients(
    hidden: jax.Array, head: Head, cotangent: jax.Array, *, kernel_gradient: bool
) -> tuple[jax.Array, Head]:
    """The gradients of `head_logits`, float32: dh = G W + G B^T A^T, dW = G^T h, and A's and B's.

    >>> head = Head(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
    >>> cotangent = jnp.array([[1.0, 1.0]])
    >>> of_hidden, of_head = head_gradients(jnp.ones((1, 2)), head, cotangent, kernel_gradient=True)
    >>> print(of_hidden, of_head.kernel.sum())
    [[1. 2.]] 4.0

    Args:
        hidden: h [P, D].
        head: the weights W, A and B.
        cotangent: G [P, V], of the logits; 0 where a token is not valid.
        kernel_gradient: False where the kernel is frozen: its gradient is 0 then, and not computed.

    Returns:
        Of the hidden states [P, D], and of the weights. The kernel's lies as `empty_kernel_sum`
        does, and is a scalar 0 where it is frozen.
    """
    dtype = head.kernel.dtype
    cotangent = cotangent.astype(dtype)
    hidden_gradient = float32_product(cotangent, head.kernel)
    kernel = head_kernel_gradient(hidden, cotangent) if kernel_gradient else jnp.float32(0.0)
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


def chunk_row_count(row_count: int, vocab_size: int) -> int:
    """Rows of logits computed at a time: a power of two, or all where they are fewer.

    As many as MAX_CHUNK_BYTES / (4 V) allows, and no fewer than MIN_CHUNK_ROWS.

    >>> chunk_row_count(4096, 49152), chunk_row_count(4096, 262144), chunk_row_count(5, 262144)
    (256, 128, 5)
    """
    fitting = max(MIN_CHUNK_ROWS, MAX_CHUNK_BYTES // (4 * vocab_size))
    return min(row_count, 1 << (fitting.bit_length() - 1))
