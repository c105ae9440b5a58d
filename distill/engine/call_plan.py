"""Which waiting jobs go into the next call of the scorer. Pure: no thread, no clock, no device.

A call takes jobs of one or more streams, up to a budget of tokens. The streams share the device by
weighted fair queuing, all with the same weight. Each stream has a position on a virtual time. The
tokens that a call takes from a stream advance its position. The virtual time itself advances by the
equal share of the call that each waiting stream is due. The stream at the lowest position comes
first.

A newcomer starts at the present virtual time. So a long request delays it by the call that is under
way and no more, and newcomers never starve a long request.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.engine.scoring_jobs import ScoreJob
from distill.engine.shared_prefixes import computed_length, shared_length
from distill.engine.weights import ModelWeights


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Consecutive jobs of a stream that go into the same call."""

    jobs: tuple[ScoreJob, ...]
    """At least one."""

    token_count: int
    """What they add to a call."""


def added_tokens(job: ScoreJob, prefix_length: int) -> int:
    """What a job adds to a call that already holds another with a prefix of this length.

    The tokens of its body that are its own, or its rows of the head where those are more.
    """
    row_count = len(job.token_ids) - job.score_from
    return max(computed_length(job) - prefix_length, row_count)


def portions(
    jobs: Sequence[ScoreJob], token_budget: int, *, shares_prefixes: bool = True
) -> list[Portion]:
    """Cut the jobs of a stream, in order, into what is scheduled together.

    A job stays with the one before it if sharing a prefix with it saves at least half of the job,
    and if the budget allows. Without shared prefixes, each job is alone.
    """
    cut: list[Portion] = []
    previous: ScoreJob | None = None
    for job in jobs:
        shared = shared_length(previous, job) if previous and shares_prefixes else 0
        added = added_tokens(job, shared)
        alone = added_tokens(job, 0)
        if cut and 2 * added <= alone and cut[-1].token_count + added <= token_budget:
            together = cut.pop()
            cut.append(
                Portion(jobs=(*together.jobs, job), token_count=together.token_count + added)
            )
        else:
            cut.append(Portion(jobs=(job,), token_count=alone))
        previous = job
    return cut


@dataclass(eq=False, kw_only=True)
class WaitingJobs:
    """The jobs of one stream that are in no call yet."""

    weights: ModelWeights
    """What they run under."""

    portions: deque[Portion]
    """In the order of the stream."""

    virtual_time: float
    """Position of the stream: the lower it is, the more the stream is owed."""

    arrival: int
    """Its number among all streams, for a definite order of equals."""

    served_tokens: int = field(default=0, init=False)
    """Tokens that went into calls so far."""

    @property
    def token_count(self) -> int:
        """Of all its jobs."""
        return sum(portion.token_count for portion in self.portions)

    @property
    def _rank(self) -> tuple[float, int, int]:
        # Of two at the same position, the one that was served less comes first: a newcomer comes
        # before a long request.
        return self.virtual_time, self.served_tokens, self.arrival


class CallPlanner:
    """Composes calls. Between them it remembers the virtual time and the number of arrivals."""

    def __init__(self, token_budget: int, *, shares_prefixes: bool = True) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {token_budget}")
        self._token_budget = token_budget
        self._shares_prefixes = shares_prefixes
        self._virtual_time = 0.0
        self._arrivals = 0

    def admit(self, jobs: Sequence[ScoreJob], weights: ModelWeights) -> WaitingJobs:
        """A new stream."""
        self._arrivals += 1
        return WaitingJobs(
            weights=weights,
            portions=deque(self._portions(jobs)),
            virtual_time=self._virtual_time,
            arrival=self._arrivals,
        )

    def put_back(self, stream: WaitingJobs, jobs: Sequence[ScoreJob]) -> None:
        """Let jobs that were taken and not finished wait again, before all others of their stream.

        The stream pays for them a second time: their prompts are computed again.
        """
        stream.portions.extendleft(reversed(self._portions(jobs)))

    def fills_a_call(self, streams: Sequence[WaitingJobs]) -> bool:
        """Whether no further stream could change what the next call is worth."""
        return sum(stream.token_count for stream in streams) >= self._token_budget

    def take_call(self, streams: Sequence[WaitingJobs]) -> list[tuple[WaitingJobs, list[ScoreJob]]]:
        """Take the jobs of the next call.

        Args:
            streams: those that may take part now.

        Returns:
            The streams that take part, all under the same weights, and their jobs, in order.
            Together the jobs stay within the budget; only a single job may exceed it.
        """
        waiting = [stream for stream in streams if stream.portions]
        if not waiting:
            return []
        for stream in waiting:
            # A stream that could take nothing for a while, because its reader lagged, is not owed
            # all of that time. A stream whose next job did not fit lags by less than two budgets,
            # so the bound does not touch it.
            lowest = self._virtual_time - 2 * self._token_budget
            stream.virtual_time = max(stream.virtual_time, lowest)
        weights = min(waiting, key=lambda stream: stream._rank).weights
        candidates = [stream for stream in waiting if same_weights(stream.weights, weights)]
        room = self._token_budget
        latest = math.inf
        taken: dict[WaitingJobs, list[ScoreJob]] = {}
        while candidates and room > 0:
            stream = min(candidates, key=lambda stream: stream._rank)
            if stream.virtual_time > latest:
                break
            portion = stream.portions[0]
            if taken and portion.token_count > room:
                # Its position is the lowest now, so it comes first in the next call. Others may
                # use the room, but only up to a budget ahead of it: small jobs must not get ahead
                # of large ones for good.
                latest = min(latest, stream.virtual_time + self._token_budget)
                candidates.remove(stream)
                continue
            stream.portions.popleft()
            taken.setdefault(stream, []).extend(portion.jobs)
            room -= portion.token_count
            stream.virtual_time += portion.token_count
            stream.served_tokens += portion.token_count
            if not stream.portions:
                candidates.remove(stream)
        self._virtual_time += (self._token_budget - room) / len(waiting)
        return list(taken.items())

    def _portions(self, jobs: Sequence[ScoreJob]) -> list[Portion]:
        return portions(jobs, self._token_budget, shares_prefixes=self._shares_prefixes)


def same_weights(first: ModelWeights, second: ModelWeights) -> bool:
    """Whether jobs under the two may share a call: they are the same arrays."""
    return first.parameters is second.parameters and first.adapter is second.adapter
