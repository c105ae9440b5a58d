"""`python -m benchmarks`: this project beside other ways to do the same, on this machine.

Every case runs ours, the straightforward JAX path, Transformers on PyTorch (where installed) and
skyrl's JAX backend (where `make bench-peer` has installed it) in turn, round after round, and
prints the median ratio of their seconds to ours. What a side computes is compared with ours first.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from rich.console import Console

from benchmarks.agreement import DisagreementError
from benchmarks.bench import Bench
from benchmarks.cases import CASES, Case
from benchmarks.models import MODEL_NAMES, open_model, scratch_directory
from benchmarks.peak import Peak, find_peak
from benchmarks.peers.process import Peer, PeerCommand, skyrl_python, torch_python
from benchmarks.results import CaseResult, print_table, read_json, updated, write_json
from benchmarks.rounds import RoundPlan
from benchmarks.sizes import FULL, QUICK
from distill.engine.process import keep_freed_memory, use_full_precision

FULL_PLAN = RoundPlan(most_rounds=5, most_seconds=40)
QUICK_PLAN = RoundPlan(most_rounds=3, most_seconds=3)

QUICK_PEER_CASES = (
    "teacher_dense",
    "teacher_ragged",
    "student_lora_soft_dense",
    "student_lora_soft_ragged",
)
"""With --quick the other programs are beside these alone: they take most of the time."""


def main() -> None:
    """Measure, print, write."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.update and not arguments.json:
        parser.error("argument --update: needs --json")
    console = Console(width=None if sys.stdout.isatty() else 160)
    peers = _peers(arguments, console)
    keep_freed_memory()  # as the services do; the naive side gains as much
    use_full_precision()
    started = time.monotonic()
    failed: list[str] = []
    results: list[CaseResult] = []
    earlier = read_json(arguments.json) if arguments.update else []
    with scratch_directory() as scratch, _closing(peers):
        peak = find_peak()
        console.print(_machine(arguments.dtype, peak), highlight=False)
        for name, cases in _plan(arguments):
            model = open_model(name, arguments.dtype, Path(scratch))
            for case in cases:
                bench = Bench(
                    model=model,
                    dtype=arguments.dtype,
                    sizes=QUICK if arguments.quick else FULL,
                    plan=_rounds(arguments),
                    peak=peak,
                    peers=peers if _takes_peers(arguments, case) else (),
                    log=lambda line: print(
                        f"[{time.monotonic() - started:5.0f} s] {line}", file=sys.stderr
                    ),
                )
                try:
                    results += case.run(bench)
                except DisagreementError as error:
                    failed.append(f"{case.name} on {name} was not timed: {error}")
                # A file after every case: an interrupted run has what it measured.
                if arguments.json:
                    write_json(updated(earlier, results), arguments.json)
                # Each case counts its own programs, whatever ran before it.
                jax.clear_caches()  # type: ignore[no-untyped-call]  # JAX leaves it untyped
    print_table(results, console)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    if failed:
        sys.exit("\n".join(failed))


def _parser() -> argparse.ArgumentParser:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="small workloads, few rounds: under 5 minutes")
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    add("--json", type=Path, metavar="FILE", help="also write the results there")
    add("--update", action="store_true", help="keep what FILE has of other cases and models")
    add("--rounds", type=int, metavar="COUNT", help="exactly so many, however long they take")
    add("--model", nargs="+", metavar="REF", help=f"default: {' and '.join(MODEL_NAMES)}")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our side")
    add("--torch-python", metavar="PATH", help="interpreter with torch, transformers and peft")
    add("--skyrl-python", metavar="PATH", help="interpreter with skyrl (make bench-peer)")
    add("--no-peers", action="store_true", help="neither torch nor skyrl")
    add("--verbose", action="store_true", help="let torch and skyrl write to stderr")
    return parser


def _plan(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Case]]]:
    """The cases of each model: a model is loaded once."""
    chosen = [
        case
        for case in CASES
        if (case.name in arguments.only if arguments.only else case.is_quick or not arguments.quick)
    ]
    for name in arguments.model or MODEL_NAMES:
        cases = []
        for case in chosen:
            models = case.quick_models if arguments.quick else case.models
            if arguments.model or name in models:
                cases.append(case)
        if cases:
            yield name, cases


def _rounds(arguments: argparse.Namespace) -> RoundPlan:
    if arguments.rounds is not None:
        return RoundPlan(most_rounds=arguments.rounds, most_seconds=float("inf"))
    return QUICK_PLAN if arguments.quick else FULL_PLAN


def _takes_peers(arguments: argparse.Namespace, case: Case) -> bool:
    return bool(arguments.only) or not arguments.quick or case.name in QUICK_PEER_CASES


def _peers(arguments: argparse.Namespace, console: Console) -> tuple[Peer, ...]:
    if arguments.no_peers:
        return ()
    commands = []
    torch, skyrl = torch_python(arguments.torch_python), skyrl_python(arguments.skyrl_python)
    if torch is None:
        console.print("torch is not installed: --torch-python, or make environment-parity")
    else:
        module = "benchmarks.peers.torch_worker"
        for name, dtype in (("torch_f32", "float32"), ("torch_bf16", "bfloat16")):
            commands.append(PeerCommand(name=name, python=torch, module=module, dtype=dtype))
    if skyrl is None:
        console.print("skyrl is not installed: make bench-peer")
    else:
        module = "benchmarks.peers.skyrl_worker"
        commands.append(PeerCommand(name="peer", python=skyrl, module=module, dtype="float32"))
    threads = len(os.sched_getaffinity(0))
    return tuple(
        Peer(command, threads=threads, is_verbose=arguments.verbose) for command in commands
    )


@contextmanager
def _closing(peers: tuple[Peer, ...]) -> Iterator[None]:
    try:
        yield
    finally:
        for peer in peers:
            peer.close()


def _machine(dtype: str, peak: Peak) -> str:
    rate = peak.flops / peak.run() / 1e9
    shape = " x ".join(str(extent) for extent in peak.shape)
    return (
        f"{dtype} on {jax.devices()[0].device_kind} ({platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores); float32 matrix product {shape}: {rate:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
