"""Several sequences on one axis of tokens.

A *pack* is a row of N token slots. It holds sequences one after the other, with empty slots
between them only where a pack has some to spare and attention gains by it; a token sees the tokens
of its own sequence up to itself and, where its sequence continues a prefix that others of the pack
continue too, the slots of that prefix.
"""

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

SlotArray: TypeAlias = Any
"""[N] int32: NumPy's on the host, JAX's in compiled code."""


class Segments(NamedTuple):
    """What each slot of a pack sees. All [N] int32.

    Slot i sees the slots [starts[i], i] and [prefix_starts[i], prefix_ends[i]).
    """

    positions: SlotArray
    """Of each token in its sequence, the prefix counted: what rotary angles are made of."""

    starts: SlotArray
    """First slot of the token's own part of its sequence."""

    prefix_starts: SlotArray
    """First slot of the shared prefix."""

    prefix_ends: SlotArray
    """One past its last; not above the start of it where there is none."""


def rows_as_segments(row_count: int, row_length: int) -> Segments:
    """The segments of rows [B, T] laid one after the other: each is a sequence of its own."""
    slots = jnp.arange(row_count * row_length)
    positions = slots % row_length
    nothing = jnp.zeros_like(slots)
    return Segments(positions, slots - positions, nothing, nothing)


def pad_segments(segments: Segments, slot_count: int) -> Segments:
    """With slots added at the end that see themselves alone and that nothing else sees."""
    count = segments.positions.shape[0]
    padding = (0, slot_count - count)
    nothing = [jnp.pad(array, padding) for array in segments]
    own = jnp.arange(count, slot_count, dtype=segments.starts.dtype)
    return Segments(nothing[0], jnp.concatenate([segments.starts, own]), nothing[2], nothing[3])


def window_segments(segments: Segments, window: SlotArray) -> Segments:
    """The same pack where a token sees the last `window` tokens of its sequence, itself included.

    Args:
        segments: what each slot would see without a window.
        window: a scalar, static or not, at least 1.
    """
    slots = jnp.arange(len(segments.positions), dtype=jnp.int32)
    # The prefix of a sequence is its beginning: its first slot has position 0. Where the window
    # lies behind it all, this start lies at or behind its end, which is how none is written.
    first = segments.prefix_starts + jnp.maximum(segments.positions - window + 1, 0)
    return Segments(
        segments.positions,
        jnp.maximum(segments.starts, slots - window + 1),
        first,
        segments.prefix_ends,
    )
