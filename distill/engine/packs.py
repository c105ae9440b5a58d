"""Which sequences share a pack, and the pack's arrays. NumPy; `distill.models.packing` says what a
pack is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.engine.buckets import length_bucket
from distill.models.packing import Segments
from distill.tensors import Int32Array

SMALLEST_PACK = 128
"""Slots of the smallest pack: below it a pack costs about the same and would only add a shape."""


def pack_slots(token_count: int) -> int:
    """Slots of the pack for so many tokens: few sizes, for each is a compilation."""
    return length_bucket(token_count, smallest=SMALLEST_PACK)


def slots_within(token_budget: int, token_count: int) -> int:
    """Slots of a pack that may hold `token_budget` tokens, or one sequence that is longer.

    The budget is a size of its own. Beyond it every length would be one: there only buckets are.
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
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[index]
        place = next((i for i, room in enumerate(rooms) if size <= room), None)
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
    """[N]; 0 in the slots after the last token."""

    segments: Segments
    """What each slot sees; a slot after the last token sees itself."""


class PackWriter:
    """Lays sequences into one pack after the other."""

    def __init__(self) -> None:
        self._tokens: list[Int32Array] = []
        self._positions: list[Int32Array] = []
        self._starts: list[Int32Array] = []
        self._prefixes: list[tuple[int, int, int]] = []
        self.token_count = 0

    def add(self, token_ids: Int32Array, prefix: tuple[int, int] | None = None) -> int:
        """Append a sequence and return the slot of its first token.

        Args:
            token_ids: [T].
            prefix: the slots [start, end) of the sequence that this one continues; None: none.
        """
        start, length = self.token_count, len(token_ids)
        prefix_start, prefix_end = (0, 0) if prefix is None else prefix
        offset = prefix_end - prefix_start
        self._tokens.append(token_ids)
        self._positions.append(np.arange(offset, offset + length, dtype=np.int32))
        self._starts.append(np.full(length, start, np.int32))
        self._prefixes.append((length, prefix_start, prefix_end))
        self.token_count += length
        return start

    def pack(self, slot_count: int) -> Pack:
        """The arrays, with `slot_count` slots."""
        padding = slot_count - self.token_count
        lengths = [length for length, _, _ in self._prefixes]

        def padded(parts: Sequence[Int32Array]) -> Int32Array:
            return np.concatenate([*parts, np.zeros(padding, np.int32)])

        own = np.arange(self.token_count, slot_count, dtype=np.int32)
        bounds = [
            np.repeat(np.array([item[column] for item in self._prefixes], np.int32), lengths)
            for column in (1, 2)
        ]
        return Pack(
            token_ids=padded(self._tokens),
            segments=Segments(
                positions=padded(self._positions),
                starts=np.concatenate([*self._starts, own]),
                prefix_starts=padded([bounds[0]]),
                prefix_ends=padded([bounds[1]]),
            ),
        )
