"""How prompts are laid into packs, the prefixes that they share only once.

Letters: T tokens of a prompt, N slots of a pack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distill.arrays import Int32Array
from distill.engine.packs import Pack, PackWriter, first_fit, pack_slots, slots_within
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.shared_prefixes import PrefixGroup, prefix_groups


@dataclass(frozen=True, kw_only=True)
class PlacedJob:
    """A prompt in a pack."""

    job: ScoreJob
    """The prompt."""

    prefix_slot: int
    """Slot of the first token of the prefix that it shares with others."""

    prefix_length: int
    """Length of that prefix; 0 where it shares none."""

    own_slot: int
    """Slot of the first token after the prefix."""

    def slots(self, rows: Int32Array) -> Int32Array:
        """Slots of the hidden states that predict the tokens of these rows."""
        positions = rows - 1
        own = self.own_slot + positions - self.prefix_length
        placed: Int32Array = np.where(
            positions < self.prefix_length, self.prefix_slot + positions, own
        ).astype(np.int32)
        return placed


@dataclass(frozen=True, kw_only=True)
class ScoringPack:
    """Prompts that one call of the body computes."""

    pack: Pack
    """Its arrays."""

    jobs: tuple[PlacedJob, ...]
    """Where each prompt is."""


def plan_packs(
    jobs: Sequence[ScoreJob],
    token_budget: int,
    *,
    shared_prefix_budget: int | None = None,
    shares_prefixes: bool = True,
) -> Iterator[ScoringPack]:
    """Lay prompts into packs.

    Args:
        jobs: the prompts, in any order.
        token_budget: most tokens in a pack; a longer prompt is alone in one, or with its equals.
        shared_prefix_budget: most tokens in a pack of prompts that share a prefix. Such a pack
            exceeds `token_budget` only where it computes less than several packs within it, each
            of which computes the prefix again. None: `token_budget`.
        shares_prefixes: whether shared prefixes are computed once.
    """
    if shares_prefixes:
        groups = prefix_groups(jobs)
    else:
        groups = (PrefixGroup(jobs=(job,), prefix_length=0) for job in jobs)
    parts = [
        part
        for group in groups
        for part in _fitting_parts(group, token_budget, shared_prefix_budget or token_budget)
    ]
    for items in first_fit([part.token_count for part in parts], token_budget):
        token_count = sum(parts[item].token_count for item in items)
        slot_count = slots_within(token_budget, token_count)
        writer = PackWriter(spare_slots=slot_count - token_count)
        placed = [place for item in items for place in _write(parts[item], writer)]
        yield ScoringPack(pack=writer.pack(slot_count), jobs=tuple(placed))


def _fitting_parts(
    group: PrefixGroup, token_budget: int, shared_prefix_budget: int
) -> Iterator[PrefixGroup]:
    """The group, or parts of it that each go into a pack and each compute the prefix once.

    Of several ways to cut it, the one that takes the fewest slots; of equals, the one with smaller
    packs.
    """
    if group.token_count <= token_budget or len(group.jobs) == 1:
        yield group
        return
    capacities = [token_budget]
    while capacities[-1] < shared_prefix_budget:
        capacities.append(min(pack_slots(capacities[-1] + 1), shared_prefix_budget))
    cuts = [_cut(group, capacity) for capacity in capacities]
    yield from min(cuts, key=lambda parts: sum(_slots(part, token_budget) for part in parts))


def _cut(group: PrefixGroup, capacity: int) -> list[PrefixGroup]:
    """Parts that each fit into a pack of this capacity, or have a single prompt that does not."""
    packs = first_fit(group.own_lengths, max(1, capacity - group.prefix_length))
    return [
        PrefixGroup(
            jobs=tuple(group.jobs[item] for item in items),
            prefix_length=group.prefix_length if len(items) > 1 else 0,
        )
        for items in packs
    ]


def _slots(group: PrefixGroup, token_budget: int) -> int:
    """Slots that a group takes.

    Others fill up a pack within the budget. Nothing fills up a larger one, so its padding counts.
    """
    if group.token_count <= token_budget:
        return group.token_count
    return pack_slots(group.token_count)


def _write(group: PrefixGroup, writer: PackWriter) -> Iterator[PlacedJob]:
    length = group.prefix_length
    prefix = None
    if length:
        first = writer.add(group.jobs[0].token_ids[:length])
        prefix = (first, first + length)
    for job in group.jobs:
        own_slot = writer.add(job.token_ids[length:-1], prefix)
        prefix_slot = 0 if prefix is None else prefix[0]
        yield PlacedJob(job=job, prefix_slot=prefix_slot, prefix_length=length, own_slot=own_slot)
