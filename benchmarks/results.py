"""What a case found out, and how it is written and printed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One case on one model. A ratio is their seconds by ours; None: not run, or has no meaning."""

    name: str
    """Of the case."""

    model: str
    """Of the model."""

    ratio_naive: float | None = None
    """Against the straightforward JAX path; what that is for a case is in `note`."""

    ratio_torch_f32: float | None = None
    """Against Transformers on PyTorch in float32."""

    ratio_torch_bf16: float | None = None
    """The same in bfloat16."""

    ratio_peer: float | None = None
    """Against skyrl's JAX backend."""

    own_ratios: dict[str, float] = field(default_factory=dict)
    """Against our own engine used otherwise, by what is different."""

    fraction_of_peak: float | None = None
    """Needed operations per second by those of the matrix product of the same rounds."""

    peak_bytes: int | None = None
    """Memory of our largest compiled program: arguments, weights among them, results, temporaries.
    Temporaries alone where the case is about them."""

    naive_peak_bytes: int | None = None
    """The same of the straightforward path."""

    compiles: int | None = None
    """Programs that our first run compiled, the small ones around an array's birth included."""

    compile_seconds: float | None = None
    """What that took."""

    rounds: int = 0
    """Alternating rounds measured."""

    token_count: int = 0
    """Real tokens in one run."""

    peak_flops_per_second: float | None = None
    """Of the float32 matrix product, median of the rounds."""

    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Median, min and max of each side that was run."""

    tokens_per_second: dict[str, float] = field(default_factory=dict)
    """Of each side that was run: real tokens by median seconds."""

    peer_process_bytes: dict[str, int] = field(default_factory=dict)
    """Peak memory of the processes of other sides so far."""

    note: str = ""
    """What was compared, and what was left out and why."""


def write_json(results: Sequence[CaseResult], path: Path) -> None:
    """A list of objects with the fields of CaseResult."""
    content = [asdict(result) for result in results]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> list[CaseResult]:
    """The inverse of `write_json`; none where there is no file."""
    if not path.is_file():
        return []
    return [CaseResult(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


def updated(earlier: Sequence[CaseResult], results: Sequence[CaseResult]) -> list[CaseResult]:
    """The earlier results, with those measured anew in their place or at the end."""
    found = {(result.name, result.model): result for result in (*earlier, *results)}
    return list(found.values())


def print_table(results: Sequence[CaseResult], console: Console) -> None:
    """The results side by side; the notes below them."""
    table = Table(title="their seconds / our seconds, medians of alternating rounds")
    table.add_column("case", no_wrap=True)
    for column in (
        *("tokens/s", "of peak", "naive", "torch f32", "torch bf16", "skyrl", "ours otherwise"),
        *("memory", "naive's", "compiled", "rounds"),
    ):
        table.add_column(column, justify="right")
    model = None
    for result in results:
        if result.model != model:
            model = result.model
            table.add_section()
            table.add_row(f"[bold]{model}[/bold]")
        ours = result.tokens_per_second.get("ours")
        share = result.fraction_of_peak
        programs = result.compiles
        seconds = result.compile_seconds or 0.0
        table.add_row(
            result.name,
            "" if ours is None else f"{ours:,.0f}",
            "" if share is None else f"{share:.0%}",
            _ratio(result.ratio_naive),
            _ratio(result.ratio_torch_f32),
            _ratio(result.ratio_torch_bf16),
            _ratio(result.ratio_peer),
            ", ".join(f"{name} {_ratio(ratio)}" for name, ratio in result.own_ratios.items()),
            _mebibytes(result.peak_bytes),
            _mebibytes(result.naive_peak_bytes),
            "" if programs is None else f"{programs} in {seconds:.1f} s",
            str(result.rounds or ""),
        )
    console.print(table)
    for note in dict.fromkeys(f"{result.name}: {result.note}" for result in results if result.note):
        console.print(note, highlight=False, style="dim")


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f} MiB"
