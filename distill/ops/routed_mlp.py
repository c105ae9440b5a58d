"""A mixture of gated MLPs, exact: every token visits all experts that it chose.

An expert has no capacity, so it takes a token however many others chose it too
(https://arxiv.org/abs/1701.06538 has one).

The (token, choice) pairs are sorted by expert. Each expert that was chosen runs over its pairs in
blocks of rows, and a block is a plain matrix product. The bounds of the loops are known when the
tokens are, not when the program is compiled: the work is that of the pairs alone, and an expert
that no token chose costs nothing. `jax.lax.ragged_dot` would do the same in one call, but XLA's CPU
backend computes it as a dense product of all rows with all experts.

Letters: N tokens, D hidden size, E experts, k choices of a token, M = N · k pairs, F width of an
expert, Q rows of a block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.typing import DTypeLike

from distill.kernels.bits import as_bits, bits_like, from_bits, values_as, zeros_as_bits
from distill.kernels.products import float32_product, left_gradient, right_gradient

LARGEST_BLOCK = 128
"""Rows at which the products run at full speed."""

SMALLEST_BLOCK = 8
"""Fewer rows cost as much: the time of so small a product is that of reading the expert."""


class Routing(NamedTuple):
    """Which experts each token visits."""

    experts: jax.Array
    """[N, k] int32 in [0, E), no two of a row equal."""

    shares: jax.Array
    """[N, k] float32: factor of each expert's result in the sum."""


class ExpertKernels(NamedTuple):
    """The three projections of all experts; those of one expert have no axis of E."""

    gate: jax.Array
    """[E, D, F]."""

    up: jax.Array
    """[E, D, F]."""

    down: jax.Array
    """[E, F, D]."""


def route(logits: jax.Array, choice_count: int, *, is_normalized: bool) -> Routing:
    """Each token's k most probable experts, with p = softmax(logits) over all of them as shares.

    >>> routing = route(jnp.log(jnp.array([[1.0, 6.0, 2.0]])), 2, is_normalized=True)
    >>> print(routing.experts, routing.shares)
    [[1 2]] [[0.75 0.25]]

    Args:
        logits: [N, E] float32.
        choice_count: k.
        is_normalized: whether a token's shares are divided by their sum.

    Raises:
        ValueError: k exceeds E.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    shares, experts = lax.top_k(probabilities, choice_count)
    if is_normalized:
        shares = shares / shares.sum(-1, keepdims=True)
    return Routing(experts.astype(jnp.int32), shares)


def routed_mlp(hidden: jax.Array, routing: Routing, kernels: ExpertKernels) -> jax.Array:
    """sum over a token's choices of share · down(silu(gate(x)) · up(x)).

    >>> routing = Routing(jnp.array([[1, 0]], jnp.int32), jnp.array([[0.5, 0.25]]))
    >>> gate = jnp.array([[[40.0]], [[80.0]]])  # of two experts; silu(x) is x for such large x
    >>> kernels = ExpertKernels(gate, jnp.ones((2, 1, 1)), jnp.ones((2, 1, 1)))
    >>> print(routed_mlp(jnp.ones((1, 1)), routing, kernels))  # 0.5 · 80 + 0.25 · 40
    [[50.]]

    Args:
        hidden: [N, D].
        routing: the choices.
        kernels: the experts, in the dtype of `hidden` or stored as `product` takes them.

    Returns:
        [N, D] in the dtype of `hidden`. Differentiable in `hidden`, the routing's shares and the
        kernels; frozen kernels cost nothing in the gradient. Products sum in float32. The memory
        is O(M · (D + F)) and does not grow with E.
    """
    return _routed_mlp(hidden, routing.shares, routing.experts, *kernels)


class _Pairs(NamedTuple):
    """The pairs in the order of their experts. A block may read up to Q rows past an expert's."""

    tokens: jax.Array  # [M + Q]: of each pair; 0 past the last
    ranks: jax.Array  # [N, k]: where in this order each pair is
    starts: jax.Array  # [E + 1]: first pair of each expert
    chosen: jax.Array  # [E]: the experts that have a pair, ascending, then the others
    chosen_count: jax.Array  # []


class _Saved(NamedTuple):
    """What the forward pass keeps for the backward pass, in the order of the pairs."""

    gates: jax.Array  # [M + Q, F], before the silu; as bits
    ups: jax.Array  # [M + Q, F]; as bits


def block_rows(pair_count: int, expert_count: int) -> int:
    """Q: a power of two near an eighth of the pairs of an expert, so that few rows are empty.

    Eight experts with 4096 pairs have 512 each where all are chosen alike.

    >>> block_rows(4096, 8), block_rows(1 << 20, 8), block_rows(1, 8)
    (64, 128, 8)
    """
    part = max(1, pair_count // (8 * expert_count))
    return min(LARGEST_BLOCK, max(SMALLEST_BLOCK, 1 << (part.bit_length() - 1)))


def _sort(experts: jax.Array, expert_count: int, block: int) -> _Pairs:
    choice_count = experts.shape[1]
    by_pair = experts.reshape(-1)
    order = jnp.argsort(by_pair, stable=True).astype(jnp.int32)
    starts = jnp.searchsorted(by_pair[order], jnp.arange(expert_count + 1)).astype(jnp.int32)
    is_idle = starts[1:] == starts[:-1]
    return _Pairs(
        tokens=jnp.pad(order // choice_count, (0, block)),
        ranks=jnp.argsort(order).astype(jnp.int32).reshape(experts.shape),
        starts=starts,
        chosen=jnp.argsort(is_idle, stable=True).astype(jnp.int32),
        chosen_count=expert_count - is_idle.sum(dtype=jnp.int32),
    )


# The loops below cut and fill arrays that are stored `as_bits`. The next four functions convert
# between those and values.


def _rows(array: jax.Array, first: jax.Array, block: int) -> jax.Array:
    return from_bits(lax.dynamic_slice_in_dim(array, first, block))


def _take(array: jax.Array, rows: jax.Array) -> jax.Array:
    return from_bits(array[rows])


def _write(array: jax.Array, rows: jax.Array, first: jax.Array) -> jax.Array:
    """Write a block. Its rows past the expert's last pair are overwritten by the next expert."""
    return lax.dynamic_update_slice_in_dim(array, bits_like(rows, array), first, 0)


def _of_expert(kernels: ExpertKernels, expert: jax.Array, dtype: DTypeLike) -> ExpertKernels:
    return ExpertKernels(*(values_as(kernel[expert], dtype) for kernel in kernels))


def _combine(by_pair: jax.Array, pairs: _Pairs, shares: jax.Array | None) -> jax.Array:
    """Each token's sum over its pairs, in float32: [M + Q, D] to [N, D]."""
    gathered = _take(by_pair, pairs.ranks).astype(jnp.float32)
    return (gathered if shares is None else gathered * shares[..., None]).sum(1)


def _forward(
    hidden: jax.Array, routing: Routing, kernels: ExpertKernels, *, is_saving: bool
) -> tuple[jax.Array, _Saved | None]:
    expert_count, width = kernels.down.shape[:2]
    block = block_rows(routing.experts.size, expert_count)
    pairs = _sort(routing.experts, expert_count, block)
    row_count = pairs.tokens.shape[0]
    hidden_bits, kernel_bits = as_bits((hidden, kernels))

    def run_expert(index: jax.Array, results: Any) -> Any:
        expert = pairs.chosen[index]
        kernel = _of_expert(kernel_bits, expert, hidden.dtype)
        start, end = pairs.starts[expert], pairs.starts[expert + 1]

        def run_block(number: jax.Array, results: Any) -> Any:
            first = start + number * block
            inputs = _take(hidden_bits, _rows(pairs.tokens, first, block))
            gate = float32_product(inputs, kernel.gate).astype(hidden.dtype)
            up = float32_product(inputs, kernel.up).astype(hidden.dtype)
            gated = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
            output = float32_product(gated.astype(hidden.dtype), kernel.down)
            rows = (output, gate, up) if is_saving else (output,)
            return tuple(
                _write(array, part, first) for array, part in zip(results, rows, strict=True)
            )

        return lax.fori_loop(0, _block_count(start, end, block), run_block, results)

    widths = (hidden.shape[1], width, width) if is_saving else (hidden.shape[1],)
    start = tuple(zeros_as_bits((row_count, columns), hidden.dtype) for columns in widths)
    outputs, *saved = lax.fori_loop(0, pairs.chosen_count, run_expert, start)
    mixed = _combine(outputs, pairs, routing.shares).astype(hidden.dtype)
    return mixed, _Saved(*saved) if is_saving else None


def _block_count(start: jax.Array, end: jax.Array, block: int) -> jax.Array:
    return (end - start + block - 1) // block


@jax.custom_vjp
def _routed_mlp(
    hidden: jax.Array,
    shares: jax.Array,
    experts: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    kernels = ExpertKernels(gate, up, down)
    return _forward(hidden, Routing(experts, shares), kernels, is_saving=False)[0]


def _routed_mlp_forward(*arguments: CustomVJPPrimal) -> tuple[jax.Array, tuple[Any, ...]]:
    hidden, shares, experts, *kernel_values = (argument.value for argument in arguments)
    kernels = ExpertKernels(*kernel_values)
    routing = Routing(experts, shares)
    mixed, saved = _forward(hidden, routing, kernels, is_saving=True)
    # Whether the kernels train is known while tracing. An empty tuple or None carries it to the
    # backward pass as a part of the structure of the residuals, not as an array.
    training = () if any(argument.perturbed for argument in arguments[3:]) else None
    return mixed, (as_bits(hidden), routing, kernels, saved, training)


def _routed_mlp_backward(
    residuals: tuple[Any, ...], cotangent: jax.Array | SymbolicZero
) -> tuple[jax.Array | None, ...]:
    hidden_bits, routing, kernels, saved, training = residuals
    hidden = from_bits(hidden_bits)
    if isinstance(cotangent, SymbolicZero):
        return (None,) * 6
    is_training = training is not None
    gradients = _gradients(hidden, routing, kernels, saved, cotangent, is_training=is_training)
    hidden_gradient, share_gradient, kernel_gradients = gradients
    return (hidden_gradient, share_gradient, None, *(kernel_gradients or (None,) * 3))


def _gradients(
    hidden: jax.Array,
    routing: Routing,
    kernels: ExpertKernels,
    saved: _Saved,
    cotangent: jax.Array,
    *,
    is_training: bool,
) -> tuple[jax.Array, jax.Array, ExpertKernels | None]:
    """The gradients of the hidden states, of the shares and, where these train, of the kernels."""
    expert_count = kernels.down.shape[0]
    block = block_rows(routing.experts.size, expert_count)
    pairs = _sort(routing.experts, expert_count, block)
    shares_by_pair = jnp.zeros(pairs.tokens.shape).at[pairs.ranks].set(routing.shares)
    dtype = hidden.dtype
    hidden_bits, kernel_bits, cotangent_bits = as_bits((hidden, kernels, cotangent))

    def run_expert(index: jax.Array, carry: Any) -> Any:
        by_pair, kernel_gradients = carry
        expert = pairs.chosen[index]
        kernel = _of_expert(kernel_bits, expert, hidden.dtype)
        start, end = pairs.starts[expert], pairs.starts[expert + 1]

        def run_block(number: jax.Array, carry: Any) -> Any:
            (input_gradients, share_gradients), sums = carry
            first = start + number * block
            is_own = (first + jnp.arange(block) < end)[:, None]
            tokens = _rows(pairs.tokens, first, block)
            shares = _rows(shares_by_pair, first, block)[:, None]
            gate, up = (_rows(array, first, block).astype(jnp.float32) for array in saved)
            activated, silu_gradient = jax.vjp(jax.nn.silu, gate)
            gated = activated * up
            gradient = _take(cotangent_bits, tokens)
            unweighted = left_gradient(gradient, kernel.down)
            # The block may end with rows of the next expert, which must not enter these sums.
            gated_gradient = jnp.where(is_own, shares * unweighted, 0)
            up_gradient = (gated_gradient * activated).astype(dtype)
            (gate_gradient,) = silu_gradient(gated_gradient * up)
            gate_gradient = gate_gradient.astype(dtype)
            input_gradient = left_gradient(gate_gradient, kernel.gate)
            input_gradient += left_gradient(up_gradient, kernel.up)
            by_pair = (
                _write(input_gradients, input_gradient, first),
                _write(share_gradients, (gated * unweighted).sum(-1), first),
            )
            if sums is not None:
                inputs = _take(hidden_bits, tokens)
                weighted = jnp.where(is_own, shares * gated, 0).astype(dtype)
                sums = ExpertKernels(
                    sums.gate + right_gradient(inputs, gate_gradient),
                    sums.up + right_gradient(inputs, up_gradient),
                    sums.down + right_gradient(weighted, gradient),
                )
            return by_pair, sums

        sums = ExpertKernels(*(jnp.zeros(part.shape) for part in kernel)) if is_training else None
        by_pair, sums = lax.fori_loop(
            0, _block_count(start, end, block), run_block, (by_pair, sums)
        )
        if sums is not None:
            kernel_gradients = ExpertKernels(
                *(
                    array.at[expert].set(bits_like(part, array))
                    for array, part in zip(kernel_gradients, sums, strict=True)
                )
            )
        return by_pair, kernel_gradients

    row_count = pairs.tokens.shape[0]
    by_pair = (zeros_as_bits((row_count, hidden.shape[1]), dtype), jnp.zeros(row_count))
    none_yet = ExpertKernels(*map(jnp.zeros_like, kernel_bits)) if is_training else None
    (input_gradients, share_gradients), kernel_gradients = lax.fori_loop(
        0, pairs.chosen_count, run_expert, (by_pair, none_yet)
    )
    return (
        _combine(input_gradients, pairs, None).astype(dtype),
        share_gradients[pairs.ranks],
        from_bits(kernel_gradients),
    )


_routed_mlp.defvjp(_routed_mlp_forward, _routed_mlp_backward, symbolic_zeros=True)
