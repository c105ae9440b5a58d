"""Timing in alternating rounds: a shared machine's speed drifts, so figures from different minutes
cannot be compared; the ratio of two neighbours can."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """How often a case is measured."""

    most_rounds: int
    """Rounds, unless they take too long."""

    most_seconds: float
    """No further round is begun after so long; the first is always finished."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of each side in each round, by the side's name."""

    seconds: Mapping[str, Sequence[float]] = field(repr=False)
    """All of one length."""

    @property
    def round_count(self) -> int:
        """Rounds measured."""
        return len(next(iter(self.seconds.values())))

    def median(self, side: str) -> float:
        """Median seconds of a side."""
        return statistics.median(self.seconds[side])

    def ratio(self, theirs: str, ours: str) -> float | None:
        """Their seconds by ours: the median over the rounds. None when theirs was not run."""
        if theirs not in self.seconds:
            return None
        pairs = zip(self.seconds[theirs], self.seconds[ours], strict=True)
        return statistics.median(their / our for their, our in pairs)


def wall_seconds(run: Callable[[], object]) -> Callable[[], float]:
    """A function that runs and returns how long that took."""

    def timed() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return timed


def measure(sides: Mapping[str, Callable[[], float]], plan: RoundPlan) -> Timings:
    """Run all sides in turn, round after round; each returns its own seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    started = time.perf_counter()
    for _ in range(plan.most_rounds):
        for name, run in sides.items():
            seconds[name].append(run())
        if time.perf_counter() - started > plan.most_seconds:
            break
    return Timings(seconds=seconds)
