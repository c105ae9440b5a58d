"""The language-model head of training: log-probabilities at named tokens, never the logits.

Everything an objective needs of the student's logits z is log q on the support S and the
probability outside it. This op gives both, with an analytic gradient, over chunks of positions:
neither the forward nor the backward pass ever holds more than one chunk of logits [P, V].

With g_k = dL/d log q_k, g_t = dL/d log q_tail and z already divided by the temperature:

    dL/dz = sum_k g_k (e_k - q) + g_t (q_tail_only - q)

where q_tail_only is the softmax over the tokens outside S.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

MAX_CHUNK_BYTES = 32 << 20
"""Bound on one chunk of float32 logits: large enough for a full-speed matmul, small enough that
several passes over it stay cheap."""

VOCABULARY_BLOCK = 512
"""Longest run of products that the backward pass on a CPU sums before it starts another."""

MAX_OVERLAP_SUPPORT = 128
"""Largest K for which the overlap of the two supports is measured: beyond it the student's own
top-K would cost more than the loss."""


class HeadOutput(NamedTuple):
    """What the head knows about each of N positions."""

    log_probs: jax.Array
    """log q at the named tokens, [N, K] float32."""

    tail_log_probs: jax.Array
    """log of the probability outside the named tokens, [N] float32. -inf where they are the whole
    vocabulary; 0 (unused) without `with_tail`."""

    entropies: jax.Array
    """Entropy of q in nats, [N] float32. Carries no gradient."""

    top_token_ids: jax.Array
    """The most probable token, [N] int32."""

    support_overlaps: jax.Array
    """Share of the named tokens that are among the student's own K most probable, [N] float32.
    0 (unused) without `with_tail` or beyond MAX_OVERLAP_SUPPORT. Carries no gradient."""


def chunk_row_count(row_count: int, vocab_size: int) -> int:
    """Rows of logits computed at a time: a power of two that divides any row bucket above it."""
    fitting = max(8, MAX_CHUNK_BYTES // (4 * vocab_size))
    power_of_two = 1 << (fitting.bit_length() - 1)
    return min(row_count, power_of_two)


def selected_log_probs(
    hidden: jax.Array,
    kernel: jax.Array,
    token_ids: jax.Array,
    temperature: jax.Array | float = 1.0,
    *,
    with_tail: bool = False,
    kernel_gradient: bool = True,
) -> HeadOutput:
    """log q at K named tokens per position, and of everything else together.

    Args:
        hidden: [N, D] final hidden states. N must be a multiple of `chunk_row_count(N, V)`.
        kernel: [V, D] head weights, in the dtype of `hidden`.
        token_ids: [N, K] ids in [0, V). Repeated ids are allowed: their gradients add up.
        temperature: divides the logits; greater than 0. Gets no gradient.
        with_tail: also compute `tail_log_probs`.
        kernel_gradient: False where the kernel is frozen: saves a third of the backward matmuls.

    Returns:
        HeadOutput, all float32. Differentiable in `hidden` and `kernel`.
    """
    row_count = hidden.shape[0]
    chunk_rows = chunk_row_count(row_count, kernel.shape[0])
    if row_count % chunk_rows:
        raise ValueError(f"hidden: rows must be a multiple of {chunk_rows}, got {row_count}")
    return _selected_log_probs(
        with_tail, kernel_gradient, chunk_rows, hidden, kernel, token_ids, jnp.float32(temperature)
    )


def _logits(hidden: jax.Array, kernel: jax.Array, temperature: jax.Array) -> jax.Array:
    # float32 out of the matmul: bf16 logits are off by 0.06 nats at V = 151936.
    logits = jnp.einsum("pd,vd->pv", hidden, kernel, preferred_element_type=jnp.float32)
    return logits / temperature


def _over_vocabulary(logit_gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """[P, V] @ [V, D], float32."""
    summed: jax.Array = lax.platform_dependent(
        logit_gradient, kernel, cpu=_blocked_product, default=_float32_product
    )
    return summed


def _float32_product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _blocked_product(left: jax.Array, right: jax.Array) -> jax.Array:
    # The CPU's matmul sums thousands of products one after the other, and the many small ones of
    # a vocabulary round off in one direction: kernels have a common component, which cancels
    # against the few large products. The error is the same in all rows, so that sums over rows
    # do not average it out. Shorter runs cost no time.
    vocab_size = left.shape[1]
    block_size = min(VOCABULARY_BLOCK, vocab_size)
    block_count = vocab_size // block_size
    rest = block_count * block_size

    def add_block(index: jax.Array, total: jax.Array) -> jax.Array:
        start = index * block_size
        return total + _float32_product(
            lax.dynamic_slice_in_dim(left, start, block_size, axis=1),
            lax.dynamic_slice_in_dim(right, start, block_size, axis=0),
        )

    product = _float32_product(left[:, rest:], right[rest:])
    summed: jax.Array = lax.fori_loop(0, block_count, add_block, product)
    return summed


def _chunked(array: jax.Array, chunk_rows: int) -> jax.Array:
    return array.reshape(-1, chunk_rows, *array.shape[1:])


def _flat(array: jax.Array) -> jax.Array:
    return array.reshape(-1, *array.shape[2:])


class _Normalizers(NamedTuple):
    """What the backward pass keeps of the forward pass, per position."""

    log_normalizer: jax.Array  # logsumexp over V, [N]
    tail_log_normalizer: jax.Array  # logsumexp outside the support, [N]


def _forward(
    with_tail: bool,
    chunk_rows: int,
    hidden: jax.Array,
    kernel: jax.Array,
    token_ids: jax.Array,
    temperature: jax.Array,
) -> tuple[HeadOutput, _Normalizers]:
    def one_chunk(
        _: None, chunk: tuple[jax.Array, jax.Array]
    ) -> tuple[None, tuple[HeadOutput, _Normalizers]]:
        chunk_hidden, chunk_ids = chunk
        logits = _logits(chunk_hidden, kernel, temperature)  # [P, V]
        rows = jnp.arange(chunk_rows)[:, None]
        top = jnp.argmax(logits, axis=-1)
        peak = jnp.take_along_axis(logits, top[:, None], axis=-1)  # [P, 1]
        shifted = logits - peak
        unnormalized = jnp.exp(shifted)
        total = unnormalized.sum(-1)  # [P]
        log_total = jnp.log(total)
        if with_tail:
            # Summed without the support, not as 1 - sum: the difference of two numbers near 1
            # has no correct digit left once the tail is below 1e-7.
            tail_total = unnormalized.at[rows, chunk_ids].set(0.0).sum(-1)
            tail_log_total = jnp.log(tail_total)
        else:
            tail_log_total = log_total
        support_size = chunk_ids.shape[-1]
        if with_tail and support_size <= MAX_OVERLAP_SUPPORT:
            # The barrier keeps the slice out of top_k: XLA's CPU backend would turn the two into a
            # full sort over V, which takes 100 times as long and more than the rest of the step.
            own_top = lax.optimization_barrier(  # type: ignore[no-untyped-call]
                lax.top_k(logits, support_size)
            )
            least_of_top = own_top[0][:, -1:]
            at_support = jnp.take_along_axis(logits, chunk_ids, axis=-1)
            overlap = (at_support >= least_of_top).mean(-1, dtype=jnp.float32)
        else:
            overlap = jnp.zeros_like(total)
        entropy = log_total - (unnormalized * shifted).sum(-1) / total
        selected = jnp.take_along_axis(shifted, chunk_ids, axis=-1) - log_total[:, None]
        output = HeadOutput(
            log_probs=selected,
            tail_log_probs=tail_log_total - log_total,
            entropies=entropy,
            top_token_ids=top.astype(jnp.int32),
            support_overlaps=overlap,
        )
        normalizers = _Normalizers(peak[:, 0] + log_total, peak[:, 0] + tail_log_total)
        return None, (output, normalizers)

    chunks = (_chunked(hidden, chunk_rows), _chunked(token_ids, chunk_rows))
    _, results = lax.scan(one_chunk, None, chunks)
    output, normalizers = jax.tree.map(_flat, results)
    return output, normalizers


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _selected_log_probs(
    with_tail: bool,
    kernel_gradient: bool,  # noqa: ARG001 - the backward pass reads it
    chunk_rows: int,
    hidden: jax.Array,
    kernel: jax.Array,
    token_ids: jax.Array,
    temperature: jax.Array,
) -> HeadOutput:
    return _forward(with_tail, chunk_rows, hidden, kernel, token_ids, temperature)[0]


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, _Normalizers]


def _vjp_forward(
    with_tail: bool,
    kernel_gradient: bool,  # noqa: ARG001 - same signature as the function
    chunk_rows: int,
    hidden: jax.Array,
    kernel: jax.Array,
    token_ids: jax.Array,
    temperature: jax.Array,
) -> tuple[HeadOutput, _Residuals]:
    output, normalizers = _forward(with_tail, chunk_rows, hidden, kernel, token_ids, temperature)
    return output, (hidden, kernel, token_ids, temperature, normalizers)


def _vjp_backward(
    with_tail: bool,
    kernel_gradient: bool,
    chunk_rows: int,
    residuals: _Residuals,
    cotangents: HeadOutput,
) -> tuple[jax.Array, jax.Array | None, None, None]:
    hidden, kernel, token_ids, temperature, normalizers = residuals
    tail_cotangents = (
        cotangents.tail_log_probs if with_tail else jnp.zeros_like(cotangents.tail_log_probs)
    )

    def one_chunk(
        kernel_sum: jax.Array | None, chunk: tuple[jax.Array, ...]
    ) -> tuple[jax.Array | None, jax.Array]:
        chunk_hidden, ids, log_normalizer, tail_log_normalizer, g, g_tail = chunk
        logits = _logits(chunk_hidden, kernel, temperature)
        rows = jnp.arange(chunk_rows)[:, None]
        g_total = g.sum(-1) + g_tail
        logit_gradient = -g_total[:, None] * jnp.exp(logits - log_normalizer[:, None])
        if with_tail:
            # An empty tail has normalizer -inf and no gradient; exp(logits + inf) must not meet 0.
            reachable = jnp.isfinite(tail_log_normalizer)
            safe = jnp.where(reachable, tail_log_normalizer, log_normalizer)
            tail_only = jnp.exp(logits - safe[:, None]).at[rows, ids].set(0.0)
            logit_gradient += jnp.where(reachable, g_tail, 0.0)[:, None] * tail_only
        logit_gradient = logit_gradient.at[rows, ids].add(g) / temperature
        logit_gradient = logit_gradient.astype(kernel.dtype)
        hidden_gradient = _over_vocabulary(logit_gradient, kernel)
        if kernel_sum is not None:
            kernel_sum = kernel_sum + jnp.einsum(
                "pv,pd->vd", logit_gradient, chunk_hidden, preferred_element_type=jnp.float32
            )
        return kernel_sum, hidden_gradient

    chunks = tuple(
        _chunked(array, chunk_rows)
        for array in (
            hidden,
            token_ids,
            normalizers.log_normalizer,
            normalizers.tail_log_normalizer,
            cotangents.log_probs,
            tail_cotangents,
        )
    )
    start = jnp.zeros(kernel.shape, jnp.float32) if kernel_gradient else None
    kernel_sum, hidden_gradient = lax.scan(one_chunk, start, chunks)
    kernel_cotangent = (
        jnp.zeros_like(kernel) if kernel_sum is None else kernel_sum.astype(kernel.dtype)
    )
    return _flat(hidden_gradient).astype(hidden.dtype), kernel_cotangent, None, None


_selected_log_probs.defvjp(_vjp_forward, _vjp_backward)
