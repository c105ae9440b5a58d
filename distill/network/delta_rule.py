"""The gated delta rule (https://arxiv.org/abs/2412.06464): a matrix as memory, in linear time.

Each head keeps a state S [dk, dv]. A token first lets it decay, then corrects what S holds under
its key towards its value, then reads under its query:

    S ← exp(g) S;   S ← S + k (β (v − Sᵀ k))ᵀ;   output = Sᵀ q / sqrt(dk)

Token by token that is a chain of small products. Here C tokens at a time are computed together
(https://arxiv.org/abs/2406.06484): within a chunk the corrections are the solution of a triangular
system, and only the states between chunks form a chain. A sequence of a pack may begin anywhere in
a chunk: the decay from an earlier sequence to its tokens is set to zero.

None of the functions raises: g must be at most 0 and nothing checks it.

Letters: B rows, T tokens of a row, C tokens of a chunk, G key heads, R = H / G, H value heads (head
h reads and writes under key head h // R), dk and dv widths. All arithmetic is float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from distill.network.triangular import unit_lower_inverse

CHUNK_TOKENS = 64
"""C. The work within a chunk grows with its square; fewer chunks make a shorter chain."""

_NEVER = -1e30
"""The log of a decay that lets nothing through. Finite: its gradient must not be NaN."""


class DeltaTokens(NamedTuple):
    """The inputs of the rule. A token with β = 0 and g = 0 leaves the state as it is."""

    queries: jax.Array
    """[B, T, G, dk], of unit length where the model wants that."""

    keys: jax.Array
    """[B, T, G, dk], likewise."""

    values: jax.Array
    """[B, T, H, dv]."""

    log_decays: jax.Array
    """g: [B, T, H], at most 0."""

    rates: jax.Array
    """β: [B, T, H]."""


class _Chunk(NamedTuple):
    """C tokens of all rows. BG is the axis of rows and key heads together."""

    queries: jax.Array  # [BG, C, dk], scaled
    keys: jax.Array  # [BG, C, dk]
    values: jax.Array  # [BG, R, C, dv]
    log_decays: jax.Array  # [BG, R, C]
    rates: jax.Array  # [BG, R, C]
    starts: jax.Array  # [C], counted from the first token of the chunk


def chunked_delta_rule(
    tokens: DeltaTokens,
    state: jax.Array,
    starts: jax.Array | None = None,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[jax.Array, jax.Array]:
    """The rule of the module over many tokens, in chunks.

    With b_ij the decay from behind token j to token i, the corrections U of a chunk solve
    (1 + tril(β K Kᵀ b, -1)) U = β (V - from_before K S), and the outputs are
    from_before Q S + tril(Q Kᵀ b) U, with the queries scaled by 1 / sqrt(dk).

    Args:
        tokens: the rows.
        state: [B, H, dk, dv] float32, of each row before its first token.
        starts: [T] int32, for all rows: where the sequence of each token begins. It begins with a
            state of zeros; one that begins before the row, at a negative slot, continues `state`.
            None: all tokens continue it.
        chunk_tokens: C. Static.

    Returns:
        [B, T, H, dv] float32, and the states after the last tokens. Differentiable; the states
        between chunks are kept for the gradient, and the chunks are computed again.
    """
    B, T, group_count, key_width = tokens.keys.shape
    head_count, value_width = tokens.values.shape[2:]
    if starts is None:
        starts = jnp.full(T, -1, jnp.int32)
    chunks = _cut(tokens, starts, min(chunk_tokens, T))
    # The value heads of a key head lie side by side, so that one product serves them all.
    shape = (B * group_count, -1, key_width, value_width)
    grouped = state.astype(jnp.float32).reshape(shape).swapaxes(1, 2)
    # prevent_cse: the recomputation runs in the backward scan, where XLA cannot merge it with the
    # forward pass anyway.
    body = jax.checkpoint(_advance, prevent_cse=False)
    grouped, outputs = lax.scan(body, grouped, chunks)
    # [n, BG, R, C, dv]
    joined = jnp.moveaxis(outputs, 0, 2).reshape(B, head_count, -1, value_width)
    return joined[:, :, :T].swapaxes(1, 2), grouped.swapaxes(1, 2).reshape(state.shape)


def _cut(tokens: DeltaTokens, starts: jax.Array, chunk_tokens: int) -> _Chunk:
    """All chunks, on a leading axis; padded at the end with tokens that do nothing."""
    B, T, group_count, key_width = tokens.keys.shape
    padding = -T % chunk_tokens
    chunk_count = (T + padding) // chunk_tokens

    def by_chunk(array: jax.Array, heads: tuple[int, ...]) -> jax.Array:
        """[B, T, heads, ...] to [n, BG, (R,) C, ...]."""
        padded = jnp.pad(array, ((0, 0), (0, padding), *((0, 0),) * (array.ndim - 2)))
        split = padded.reshape(B, chunk_count, chunk_tokens, *heads, *array.shape[3:])
        moved = jnp.moveaxis(jnp.moveaxis(split, 1, 0), 2, 2 + len(heads))
        return moved.reshape(chunk_count, B * group_count, *moved.shape[3:])

    groups = (group_count,)
    heads = (group_count, tokens.values.shape[2] // group_count)
    wide = DeltaTokens(*(array.astype(jnp.float32) for array in tokens))
    begins = jnp.arange(chunk_count) * chunk_tokens
    padded_starts = jnp.pad(starts, (0, padding), mode="edge").reshape(chunk_count, -1)
    return _Chunk(
        queries=by_chunk(wide.queries * key_width**-0.5, groups),
        keys=by_chunk(wide.keys, groups),
        values=by_chunk(wide.values, heads),
        log_decays=by_chunk(wide.log_decays, heads),
        rates=by_chunk(wide.rates, heads),
        starts=padded_starts - begins[:, None],
    )


def _advance(state: jax.Array, chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
    """Map the state [BG, dk, R, dv] before a chunk to that after it, and its outputs
    [BG, R, C, dv]."""
    groups, ratio, chunk_tokens, value_width = chunk.values.shape
    key_width = state.shape[1]
    slots = jnp.arange(chunk_tokens)
    is_until = slots <= slots[:, None]
    # [BG, R, C, C]: the log decays from behind one token to another, summed. As a difference of two
    # sums from the first token on, a weak decay behind strong ones would have no digits left.
    behind = jnp.where(is_until.T, 0, chunk.log_decays[..., None])
    summed = jnp.einsum("il,bhlj->bhij", is_until.astype(jnp.float32), behind)
    own = (chunk.starts[:, None] <= slots) & is_until
    # [BG, R, C, C]: the share of one token's write that is left when another one reads.
    between = jnp.exp(jnp.where(own, summed, _NEVER))
    # [BG, R, C]: the share of the state before the chunk that is left when a token reads.
    from_before = summed[..., 0] + chunk.log_decays[..., :1]
    since_before = jnp.exp(jnp.where(chunk.starts < 0, from_before, _NEVER))
    # [BG, R, C]: the share of a token's write that is left at the end of the chunk.
    until_end = jnp.exp(jnp.where(chunk.starts[-1] <= slots, summed[..., -1, :], _NEVER))
    # One product for all: keys and queries are its rows, the value heads of a group its columns.
    readers = jnp.concatenate([chunk.keys, chunk.queries], axis=1)
    alike = jnp.matmul(readers, chunk.keys.swapaxes(1, 2))[:, None]
    held = jnp.matmul(readers, state.reshape(groups, key_width, -1))
    held = held.reshape(groups, 2, chunk_tokens, ratio, value_width).transpose(1, 0, 3, 2, 4)
    held = held * since_before[..., None]
    system = jnp.tril(alike[:, :, :chunk_tokens] * between * chunk.rates[..., None], -1)
    wanted = chunk.rates[..., None] * (chunk.values - held[0])
    corrections = jnp.matmul(unit_lower_inverse(system), wanted)
    outputs = held[1] + jnp.matmul(alike[:, :, chunk_tokens:] * between, corrections)
    left = (corrections * until_end[..., None]).swapaxes(1, 2)
    written = jnp.matmul(chunk.keys.swapaxes(1, 2), left.reshape(groups, chunk_tokens, -1)).reshape(
        state.shape
    )
    return state * since_before[..., -1][:, None, :, None] + written, outputs


def step_delta_rule(tokens: DeltaTokens, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rule of the module over one token, as decoding needs it.

    Args:
        tokens: with T = 1.
        state: [B, H, dk, dv] float32.

    Returns:
        [B, 1, H, dv] float32, and the states after the token.
    """
    B, _, group_count, key_width = tokens.keys.shape
    queries, keys, values, log_decays, rates = (array[:, 0].astype(jnp.float32) for array in tokens)
    by_group = (B, group_count, -1)
    decay = jnp.exp(log_decays)[..., None]
    readers = jnp.stack([keys, queries * key_width**-0.5], axis=2)
    # One pass over the state serves both readers: the query reads the old state, and the correction
    # is added to its output below.
    grouped = state.reshape(*by_group, *state.shape[2:])
    held = jnp.einsum("bgik,bgrkv->ibgrv", readers, grouped).reshape(2, *values.shape) * decay
    corrections = (values - held[0]) * rates[..., None]
    alike = (readers[:, :, 0] * readers[:, :, 1]).sum(-1)[:, :, None, None]
    outputs = held[1] + (corrections.reshape(*by_group, values.shape[-1]) * alike).reshape(
        values.shape
    )
    written = keys[:, :, None, :, None] * corrections.reshape(*by_group, 1, values.shape[-1])
    return outputs[:, None], state * decay[..., None] + written.reshape(state.shape)


def recurrent_delta_rule(
    tokens: DeltaTokens, state: jax.Array, starts: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`chunked_delta_rule` token by token, as the rule is defined; shapes as there."""
    T = tokens.keys.shape[1]
    is_start = jnp.zeros(T, bool) if starts is None else starts == jnp.arange(T)

    def step(
        state: jax.Array, inputs: tuple[DeltaTokens, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        here, begins = inputs
        outputs, state = step_delta_rule(
            DeltaTokens(*(array[:, None] for array in here)), jnp.where(begins, 0, state)
        )
        return state, outputs[:, 0]

    by_token = DeltaTokens(*(jnp.moveaxis(array, 1, 0) for array in tokens))
    state, outputs = lax.scan(step, state.astype(jnp.float32), (by_token, is_start))
    return jnp.moveaxis(outputs, 0, 1), state
