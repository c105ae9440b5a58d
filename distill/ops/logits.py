"""From hidden states to logits: the head's weights, and how many rows of it fit in a chunk."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

MAX_CHUNK_BYTES = 64 << 20
"""Bound on one chunk of float32 logits, where that many rows keep the product at full speed."""

MIN_CHUNK_ROWS = 128
"""Fewer rows read the kernel of the head more often than their product can hide."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "down", "up"),
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

    valid_vocab_size: int | None = None
    """Tokens from here on have no probability, and no gradient. Static; None: all have."""

    @property
    def token_count(self) -> int:
        """Tokens that can have a probability."""
        rows = self.kernel.shape[0]
        return rows if self.valid_vocab_size is None else self.valid_vocab_size


def head_logits(hidden: jax.Array, head: Head) -> jax.Array:
    """Logits [P, V] of hidden states [P, D], float32 whatever the weights are.

    A bfloat16 logit is off by 0.06 nats at V = 151936. Those of tokens that are not valid are -inf.
    """
    logits = jnp.einsum(
        "pd,vd->pv", hidden, head.kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    if head.down is not None and head.up is not None:
        narrow = _float32_product(hidden, head.down.astype(hidden.dtype)).astype(hidden.dtype)
        logits = logits + _float32_product(narrow, head.up.astype(hidden.dtype))
    padding = logits.shape[1] - head.token_count
    if not padding:
        return logits
    # Written over in place: a slice of the kernel, or of the logits, would be a copy of it.
    nothing = jnp.full((logits.shape[0], padding), -jnp.inf)
    return jax.lax.dynamic_update_slice(logits, nothing, (0, head.token_count))


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
        Of the hidden states [P, D], and of the weights; the kernel's is a scalar 0 where frozen.
    """
    dtype = head.kernel.dtype
    cotangent = cotangent.astype(dtype)
    hidden_gradient = _float32_product(cotangent, head.kernel)
    kernel = (
        jnp.einsum("pv,pd->vd", cotangent, hidden, preferred_element_type=jnp.float32)
        if kernel_gradient
        else jnp.float32(0.0)
    )
    if head.down is None or head.up is None:
        return hidden_gradient, replace(head, kernel=kernel)
    down, up = head.down.astype(dtype), head.up.astype(dtype)
    narrow = _float32_product(hidden, down).astype(dtype)
    narrow_gradient = _float32_product(cotangent, up.T).astype(dtype)
    return hidden_gradient + _float32_product(narrow_gradient, down.T), replace(
        head,
        kernel=kernel,
        down=_float32_product(hidden.T, narrow_gradient),
        up=_float32_product(narrow.T, cotangent),
    )


def chunk_row_count(row_count: int, vocab_size: int) -> int:
    """Rows of logits computed at a time: a power of two, or all where they are fewer."""
    fitting = max(MIN_CHUNK_ROWS, MAX_CHUNK_BYTES // (4 * vocab_size))
    return min(row_count, 1 << (fitting.bit_length() - 1))


def _float32_product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)
