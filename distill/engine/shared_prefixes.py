"""Prompts that share a prefix, which a pack then computes once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distill.engine.scoring_jobs import ScoreJob

MIN_SHARED_TOKENS = 32
"""Shorter prefixes are computed again: sharing them saves less than it complicates."""


@dataclass(frozen=True, kw_only=True)
class PrefixGroup:
    """Prompts that share a prefix, or one prompt alone."""

    jobs: tuple[ScoreJob, ...]
    """At least one."""

    prefix_length: int
    """Tokens that all of them share; 0 for one prompt alone."""

    @property
    def token_count(self) -> int:
        """Tokens to compute, with the prefix once."""
        return self.prefix_length + sum(self.own_lengths)

    @property
    def own_lengths(self) -> list[int]:
        """Of each prompt, the tokens to compute after the prefix."""
        return [computed_length(job) - self.prefix_length for job in self.jobs]


def computed_length(job: ScoreJob) -> int:
    """Tokens of a prompt that the body computes: the last one is only ever a target."""
    return len(job.token_ids) - 1


def shared_length(first: ScoreJob, second: ScoreJob) -> int:
    """Length of the longest prefix that two prompts share, of the tokens that are computed."""
    length = min(computed_length(first), computed_length(second))
    differing = np.flatnonzero(first.token_ids[:length] != second.token_ids[:length])
    return int(differing[0]) if len(differing) else length


def prefix_groups(jobs: Sequence[ScoreJob]) -> Iterator[PrefixGroup]:
    """Group prompts by the prefixes that they share; each prompt is in one group."""
    # Big-endian bytes sort like the tokens: prompts that share a prefix are neighbours.
    ordered = sorted(jobs, key=lambda job: job.token_ids[:-1].astype(">i4").tobytes())
    members: list[ScoreJob] = []
    prefix_length = 0
    for job in ordered:
        if members:
            # One more member may shorten the prefix of all: it joins where that saves no less.
            shorter = min(prefix_length, shared_length(members[-1], job))
            saved_without = (len(members) - 1) * prefix_length
            saved_with = len(members) * shorter
            if shorter >= MIN_SHARED_TOKENS and saved_with >= saved_without:
                members.append(job)
                prefix_length = shorter
                continue
            yield _group(members, prefix_length)
        members, prefix_length = [job], computed_length(job)
    if members:
        yield _group(members, prefix_length)


def _group(members: list[ScoreJob], prefix_length: int) -> PrefixGroup:
    return PrefixGroup(jobs=tuple(members), prefix_length=prefix_length if len(members) > 1 else 0)
