"""How prompts are laid into packs, what they share only once.

Letters: T tokens of a prompt, N slots of a pack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distill.arrays import Int32Array
from distill.engine.packs import Pack, PackWriter, first_fit, pack_slots, slots_within
from distill.engine.scoring_jobs import ScoreJob

MIN_SHARED_TOKENS = 32
"""Shorter common beginnings are computed again: sharing them saves less than it complicates."""


@dataclass(frozen=True, kw_only=True)
class PlacedJob:
    """A prompt in a pack."""

    job: ScoreJob
    """The prompt."""

    prefix_slot: int
    """Slot of its first token where it shares its beginning with others."""

    prefix_length: int
    """Tokens that it shares; 0 for none."""

    own_slot: int
    """Slot of the first token after those."""

    def slots(self, rows: Int32Array) -> Int32Array:
        """Where the hidden states are that predict the tokens of these rows."""
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


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Prompts with a common beginning, or one prompt alone."""

    jobs: tuple[ScoreJob, ...]
    shared: int

    @property
    def token_count(self) -> int:
        """Slots that it takes."""
        return self.shared + sum(_length(job) - self.shared for job in self.jobs)


def plan_packs(
    jobs: Sequence[ScoreJob],
    token_budget: int,
    *,
    family_budget: int | None = None,
    shares_prefixes: bool = True,
) -> Iterator[ScoringPack]:
    """Lay prompts into packs.

    Args:
        jobs: the prompts, in any order.
        token_budget: most tokens in a pack; a longer prompt is alone in one, or with its equals.
        family_budget: most tokens in a pack of prompts with a common beginning, where that computes
            less than packs within the budget, each of which computes the beginning again. None:
            the same.
        shares_prefixes: whether common beginnings are computed once.
    """
    grouped = _families(jobs) if shares_prefixes else (_family([job], 0) for job in jobs)
    families = [
        part
        for family in grouped
        for part in _fitting_parts(family, token_budget, family_budget or token_budget)
    ]
    for items in first_fit([family.token_count for family in families], token_budget):
        token_count = sum(families[item].token_count for item in items)
        slot_count = slots_within(token_budget, token_count)
        writer = PackWriter(spare_slots=slot_count - token_count)
        placed = [place for item in items for place in _write(families[item], writer)]
        yield ScoringPack(pack=writer.pack(slot_count), jobs=tuple(placed))


def _length(job: ScoreJob) -> int:
    """Tokens that are computed: the last one is only ever a target."""
    return len(job.token_ids) - 1


def _families(jobs: Sequence[ScoreJob]) -> Iterator[_Family]:
    """Group prompts by their common beginnings, each prompt once."""
    # Big-endian bytes sort like the tokens: prompts with a common beginning are neighbours.
    ordered = sorted(jobs, key=lambda job: job.token_ids[:-1].astype(">i4").tobytes())
    members: list[ScoreJob] = []
    shared = 0
    for job in ordered:
        if members:
            common = min(shared, _common_length(members[-1], job))
            saved = (len(members) - 1) * shared
            if common >= MIN_SHARED_TOKENS and len(members) * common >= saved:
                members.append(job)
                shared = common
                continue
            yield _family(members, shared)
        members, shared = [job], _length(job)
    if members:
        yield _family(members, shared)


def _family(members: list[ScoreJob], shared: int) -> _Family:
    return _Family(jobs=tuple(members), shared=shared if len(members) > 1 else 0)


def _common_length(one: ScoreJob, other: ScoreJob) -> int:
    length = min(_length(one), _length(other))
    differs = one.token_ids[:length] != other.token_ids[:length]
    return int(differs.argmax()) if differs.any() else length


def _fitting_parts(family: _Family, token_budget: int, family_budget: int) -> Iterator[_Family]:
    """The family, or parts of it that each have a pack and each compute the beginning once.

    Of the ways to cut it, that which takes the fewest slots; of equals, that with smaller packs.
    """
    if family.token_count <= token_budget or len(family.jobs) == 1:
        yield family
        return
    own_lengths = [_length(job) - family.shared for job in family.jobs]
    capacities = [token_budget]
    while capacities[-1] < family_budget:
        capacities.append(min(pack_slots(capacities[-1] + 1), family_budget))
    cuts = [
        [
            _family([family.jobs[item] for item in items], family.shared)
            for items in first_fit(own_lengths, max(1, capacity - family.shared))
        ]
        for capacity in capacities
    ]
    yield from min(cuts, key=lambda parts: sum(_slots(part, token_budget) for part in parts))


def _slots(family: _Family, token_budget: int) -> int:
    """What it takes of packs: others may fill up a pack that is not beyond the budget."""
    if family.token_count <= token_budget:
        return family.token_count
    return pack_slots(family.token_count)


def _write(family: _Family, writer: PackWriter) -> Iterator[PlacedJob]:
    shared = family.shared
    prefix = None
    if shared:
        first = writer.add(family.jobs[0].token_ids[:shared])
        prefix = (first, first + shared)
    for job in family.jobs:
        own = writer.add(job.token_ids[shared:-1], prefix)
        start = 0 if prefix is None else prefix[0]
        yield PlacedJob(job=job, prefix_slot=start, prefix_length=shared, own_slot=own)
