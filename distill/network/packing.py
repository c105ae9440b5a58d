"""Several sequences on one axis of tokens.

A *pack* is a row of N token slots. It holds sequences one after the other. Empty slots lie between
them only where the pack has some to spare and attention gains by it. A token sees the tokens of its
own sequence up to itself. Where several sequences of the pack continue one prefix, which the pack
holds once, their tokens see the slots of that prefix as well.
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
    """Of each token in its sequence, the prefix included. Rotary angles are made of them."""

    starts: SlotArray
    """First slot of the token's own part of its sequence."""

    prefix_starts: SlotArray
    """First slot of the shared prefix."""

    prefix_ends: SlotArray
    """One past the last slot of the prefix. At or below its first slot: there is no prefix."""


def rows_as_segments(row_count: int, row_length: int) -> Segments:
    """The segments of rows [B, T] laid one after the other. Each row is a sequence of its own."""
    slots = jnp.arange(row_count * row_length)
    positions = slots % row_length
    nothing = jnp.zeros_like(slots)
    return Segments(positions, slots - positions, nothing, nothing)


def pad_segments(segments: Segments, slot_count: int) -> Segments:
    """The pack with slots added at the end. Each sees itself alone, and no other slot sees it."""
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
    # A prefix is the beginning of a sequence, so its first slot has position 0. Where the window
    # begins behind the whole prefix, the start computed here is at or behind the end of the prefix,
    # and that means no prefix.
    first = segments.prefix_starts + jnp.maximum(segments.positions - window + 1, 0)
    return Segments(
        segments.positions,
        jnp.maximum(segments.starts, slots - window + 1),
        first,
        segments.prefix_ends,
    )
