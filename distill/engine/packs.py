"""Which sequences share a pack, and the pack's arrays. NumPy; `distill.network.packing` says what a
pack is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.arrays import Int32Array
from distill.engine.buckets import length_bucket
from distill.network.packed_attention import BLOCK_SLOTS
from distill.network.packing import Segments

SMALLEST_PACK = 128
"""Slots of the smallest pack: below it a pack costs about the same and would only add a shape."""


def pack_slots(token_count: int) -> int:
    """Slots of a pack for so many tokens. There are few sizes, for each is a compilation."""
    return length_bucket(token_count, smallest=SMALLEST_PACK)


def slots_within(token_budget: int, token_count: int) -> int:
    """Slots of a pack for so many tokens, no more than the budget where they fit into it.

    A pack beyond the budget has the slots of its bucket: each size is a compilation.
    """
    slot_count = pack_slots(token_count)
    return slot_count if token_count > token_budget else min(slot_count, token_budget)


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into as few packs as first-fit-decreasing finds.

    Args:
        sizes: of the items. One that is larger than the capacity gets a pack of its own.
        capacity: of a pack.

    Returns:
        Indices of the items of each pack, largest first. Deterministic.
    """
    packs: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        size = sizes[index]
        place = next((pack for pack, room in enumerate(rooms) if size <= room), None)
        if place is None:
            packs.append([index])
            rooms.append(capacity - size)
        else:
            packs[place].append(index)
            rooms[place] -= size
    return packs


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The arrays of a pack of N slots."""

    token_ids: Int32Array
    """[N]; 0 in the slots without a token."""

    segments: Segments
    """What each slot sees; a slot without a token sees itself."""


class PackWriter:
    """Lays sequences into one pack after the other."""

    def __init__(self, *, spare_slots: int = 0) -> None:
        """
        Args:
            spare_slots: how many slots may be left out between sequences. Attention goes over
                blocks of slots, and a sequence that begins where a block does touches fewer of
                them.
        """
        self._tokens: list[Int32Array] = []
        self._positions: list[Int32Array] = []
        self._starts: list[Int32Array] = []
        self._prefixes: list[tuple[int, int, int]] = []
        self._slot_count = 0
        self._spare_slots = spare_slots

    def add(self, token_ids: Int32Array, prefix: tuple[int, int] | None = None) -> int:
        """Append a sequence and return the slot of its first token.

        Args:
            token_ids: [T].
            prefix: the slots [start, end) of the sequence that this one continues; None: none.
        """
        self._align(len(token_ids))
        start, length = self._slot_count, len(token_ids)
        prefix_start, prefix_end = (0, 0) if prefix is None else prefix
        offset = prefix_end - prefix_start
        self._append(
            token_ids,
            positions=np.arange(offset, offset + length, dtype=np.int32),
            starts=np.full(length, start, np.int32),
            prefix=(prefix_start, prefix_end),
        )
        return start

    def pack(self, slot_count: int) -> Pack:
        """The arrays of the sequences so far.

        Args:
            slot_count: N, the tokens and all spare slots. Those that are not left out between
                sequences come at the end.
        """
        self._skip(slot_count - self._slot_count)
        lengths = [length for length, _, _ in self._prefixes]
        prefix_starts, prefix_ends = (
            np.repeat(np.array([item[column] for item in self._prefixes], np.int32), lengths)
            for column in (1, 2)
        )
        return Pack(
            token_ids=np.concatenate(self._tokens),
            segments=Segments(
                positions=np.concatenate(self._positions),
                starts=np.concatenate(self._starts),
                prefix_starts=prefix_starts,
                prefix_ends=prefix_ends,
            ),
        )

    def _align(self, length: int) -> None:
        """Skip to the next block if spare slots allow it and the sequence then touches fewer."""
        if not length:
            return
        gap = -self._slot_count % BLOCK_SLOTS
        touched = -(-(self._slot_count % BLOCK_SLOTS + length) // BLOCK_SLOTS)
        if gap <= self._spare_slots and -(-length // BLOCK_SLOTS) < touched:
            self._skip(gap)
            self._spare_slots -= gap

    def _skip(self, count: int) -> None:
        """Append slots without a token, each of which sees itself."""
        nothing = np.zeros(count, np.int32)
        own = np.arange(self._slot_count, self._slot_count + count, dtype=np.int32)
        self._append(nothing, positions=nothing, starts=own, prefix=(0, 0))

    def _append(
        self,
        token_ids: Int32Array,
        *,
        positions: Int32Array,
        starts: Int32Array,
        prefix: tuple[int, int],
    ) -> None:
        self._tokens.append(token_ids)
        self._positions.append(positions)
        self._starts.append(starts)
        self._prefixes.append((len(token_ids), *prefix))
        self._slot_count += len(token_ids)
