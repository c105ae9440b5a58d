"""One measurement: ours, then the others, in alternating rounds; the same for every case."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from benchmarks.agreement import TOLERANCES, DisagreementError, check_close
from benchmarks.models import BenchModel
from benchmarks.peak import Peak
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.protocol import Task
from benchmarks.programs import Programs, watch_programs
from benchmarks.results import CaseResult
from benchmarks.rounds import RoundPlan, Timings, measure, wall_seconds
from benchmarks.sizes import Sizes
from benchmarks.work import Work

ResultT = TypeVar("ResultT")

OURS, NAIVE, PEAK = "ours", "naive", "peak"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the cases share."""

    model: BenchModel
    """To measure on."""

    dtype: str
    """In which our side and the straightforward one compute."""

    sizes: Sizes
    """Of the workloads."""

    plan: RoundPlan
    """How often."""

    peak: Peak
    """The machine's."""

    peers: tuple[Peer, ...]
    """Other sides that are installed."""

    log: Callable[[str], None]
    """Says what is going on."""

    @property
    def tolerance(self) -> float:
        """Of results that are compared."""
        return TOLERANCES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[ResultT]):
    """A case, ready to be measured."""

    name: str
    """Of the case."""

    ours: Callable[[], ResultT]
    """Does it once, results in host memory."""

    naive: Callable[[], object]
    """The same in the straightforward way."""

    check: Callable[[ResultT], None]
    """Runs the straightforward way, in the shapes that will be timed, on all or on the first
    sub-batch, and raises DisagreementError when it does not give what ours gives."""

    digest: Callable[[ResultT], float] | None
    """The number that other sides' digests must come near; None: theirs says nothing."""

    task: Task | None
    """For the other sides; None: they do not take part."""

    peers: tuple[str, ...] = ("torch_f32", "torch_bf16", "peer")
    """Which of them take part."""

    work: Work
    """What is needed."""

    token_count: int
    """Real tokens of one run."""

    beside: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """Our own engine used otherwise, by what is different."""

    note: str
    """What is compared."""


@dataclass(kw_only=True)
class _Others:
    """The other sides while they run."""

    digests: dict[str, float] = field(default_factory=dict)
    process_bytes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(bench: Bench, comparison: Comparison[ResultT]) -> CaseResult:
    """Measure a case.

    Raises:
        DisagreementError: the straightforward way gives something else, so nothing was timed.
    """
    bench.log(f"{comparison.name}: compiling and checking")
    with watch_programs() as programs:
        first = comparison.ours()
    with watch_programs() as naive_programs:
        comparison.check(first)
    sides = {OURS: wall_seconds(comparison.ours), NAIVE: wall_seconds(comparison.naive)}
    others = _Others()
    if comparison.task is not None:
        sides |= _prepare_peers(bench, comparison, comparison.task, others)
    for name, run in comparison.beside.items():
        run()
        sides[name] = wall_seconds(run)
    bench.log(f"{comparison.name}: timing {', '.join(sides)}")
    bench.peak.run()
    timings = measure({PEAK: bench.peak.run, **sides}, bench.plan)
    if comparison.digest is not None:
        timings = _without_wrong(bench, timings, comparison.digest(first), others)
    return _result(bench, comparison, timings, programs, naive_programs, others)


def _prepare_peers(
    bench: Bench, comparison: Comparison[ResultT], task: Task, others: _Others
) -> dict[str, Callable[[], float]]:
    sides: dict[str, Callable[[], float]] = {}
    for peer in bench.peers:
        if peer.name not in comparison.peers:
            continue
        try:
            run = peer.prepare(bench.model.directory, task)
        except PeerError as error:
            others.notes.append(f"not run: {error}")
            bench.log(f"{comparison.name}: {error}")
            continue

        def timed(
            run: Callable[[], tuple[float, float, int]] = run, name: str = peer.name
        ) -> float:
            seconds, others.digests[name], others.process_bytes[name] = run()
            return seconds

        sides[peer.name] = timed
    return sides


def _without_wrong(bench: Bench, timings: Timings, expected: float, others: _Others) -> Timings:
    """The timings less those of sides that computed something else."""
    kept = dict(timings.seconds)
    for name, digest in others.digests.items():
        dtype = "bfloat16" if name.endswith("bf16") else bench.dtype
        try:
            check_close("its mean", digest, expected, TOLERANCES[dtype])
        except DisagreementError as error:
            del kept[name]
            others.notes.append(f"{name} is left out, it computed something else: {error}")
    return Timings(seconds=kept)


def _result(
    bench: Bench,
    comparison: Comparison[ResultT],
    timings: Timings,
    programs: Programs,
    naive_programs: Programs,
    others: _Others,
) -> CaseResult:
    flops = comparison.work.flops(bench.model.loaded.config)
    return CaseResult(
        name=comparison.name,
        model=bench.model.name,
        ratio_naive=timings.ratio(NAIVE, OURS),
        ratio_torch_f32=timings.ratio("torch_f32", OURS),
        ratio_torch_bf16=timings.ratio("torch_bf16", OURS),
        ratio_peer=timings.ratio("peer", OURS),
        own_ratios={
            name: ratio for name in comparison.beside if (ratio := timings.ratio(name, OURS))
        },
        fraction_of_peak=fraction_of_peak(timings, flops, bench.peak.flops),
        peak_bytes=programs.peak_bytes or None,
        naive_peak_bytes=naive_programs.peak_bytes or None,
        compiles=programs.compile_count,
        compile_seconds=programs.compile_seconds,
        rounds=timings.round_count,
        token_count=comparison.token_count,
        peak_flops_per_second=bench.peak.flops / timings.median(PEAK),
        seconds=seconds_by_side(timings),
        tokens_per_second=tokens_per_second(timings, comparison.token_count),
        peer_process_bytes=others.process_bytes,
        note="; ".join([comparison.note, *others.notes]),
    )


def fraction_of_peak(timings: Timings, flops: float, peak_flops: float) -> float:
    """Needed operations per second by the peak's, both of the same round: the median."""
    pairs = zip(timings.seconds[OURS], timings.seconds[PEAK], strict=True)
    return statistics.median((flops / ours) / (peak_flops / peak) for ours, peak in pairs)


def seconds_by_side(timings: Timings) -> dict[str, dict[str, float]]:
    """Median, min and max of each side."""
    return {
        name: {"median": timings.median(name), "min": min(samples), "max": max(samples)}
        for name, samples in timings.seconds.items()
        if name != PEAK
    }


def tokens_per_second(timings: Timings, token_count: int) -> dict[str, float]:
    """Of each side."""
    return {name: token_count / timings.median(name) for name in timings.seconds if name != PEAK}
