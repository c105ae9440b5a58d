"""What a person sees of a run: progress, a summary, files with the numbers, curves."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from client.recipes.metrics import StepMetrics


class Reporter(Protocol):
    """Tells a person how far the work is."""

    def line(self, text: str) -> None:
        """Say one thing."""

    def step(self, metrics: StepMetrics) -> None:
        """Say how a training step went."""


class PlainReporter:
    """A line for everything, for logs and pipes."""

    def __init__(self, step_count: int) -> None:
        self._step_count = step_count

    def line(self, text: str) -> None:
        """Print a line at once."""
        print(text, flush=True)

    def step(self, metrics: StepMetrics) -> None:
        """Print a line about a step."""
        print(f"step {metrics.step:3}/{self._step_count}  {describe_step(metrics)}", flush=True)


class BarReporter:
    """A progress bar at the bottom of a terminal, lines above it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def step(self, metrics: StepMetrics) -> None:
        """Move the bar."""
        self._progress.update(self._task, advance=1, status=describe_step(metrics))


@contextmanager
def open_reporter(step_count: int) -> Iterator[Reporter]:
    """A bar when standard output is a terminal, plain lines otherwise."""
    console = Console()
    if not console.is_terminal:
        yield PlainReporter(step_count)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("training"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield BarReporter(progress, progress.add_task("training", total=step_count, status=""))


def describe_step(metrics: StepMetrics) -> str:
    """A step in one line: objective, KL, gradient, and tokens per second of each stage."""
    kl = metrics.batch.get("tail_bucket_kl")
    rates = [
        f"{stage} {rate:.0f}"
        for stage, rate in (
            ("sample", _rate(metrics.sampled_token_count, metrics.sampling_seconds)),
            ("score", _rate(metrics.teacher_token_count, metrics.scoring_seconds)),
            ("train", _rate(metrics.student_token_count, metrics.training_seconds)),
        )
        if rate > 0
    ]
    return (
        f"objective {metrics.objective:6.3f}  "
        f"KL {'-' if kl is None else format(kl, '.3f')}  "
        f"|g| {metrics.gradient_norm:6.2f}  tokens/s: {', '.join(rates)}"
    )


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def tokens_per_second(
    history: Sequence[StepMetrics], *, count: str, seconds: str, skip_first: bool = True
) -> float:
    """Tokens over seconds, summed over the steps.

    Args:
        history: the steps.
        count: name of the field of StepMetrics that counts the tokens.
        seconds: name of the field with their time.
        skip_first: leave out the first step, which compiles, when there are others.
    """
    steps = history[1:] if skip_first and len(history) > 1 else history
    return _rate(
        sum(getattr(step, count) for step in steps), sum(getattr(step, seconds) for step in steps)
    )


def remove_files(directory: Path, names: Sequence[str]) -> None:
    """Make the directory, and remove what an earlier run left there under these names."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).unlink(missing_ok=True)


def append_json_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add an object as one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("KL to the teacher, nats", {"tail_bucket_kl": "tail bucket"}),
    ("entropy, nats", {"teacher_entropy": "teacher", "student_entropy": "student"}),
    (
        "agreement",
        {
            "top_1_agreement": "same most probable token",
            "student_support_mass": "student mass on the support",
        },
    ),
    ("gradient norm", {"gradient_norm": "before clipping"}),
)
"""What `draw_curves` shows: a title, and the label of each metric below it."""


def draw_curves(history: Sequence[StepMetrics], path: Path) -> bool:
    """Draw objective, entropies and gradient norm over the steps as a PNG.

    Returns:
        False, with a note on standard error, when matplotlib is not installed.
    """
    try:
        # Without pyplot: no global state and no display.
        from matplotlib.figure import Figure
    except ImportError:
        print(
            "no curves: matplotlib is not installed (pip install 'topk-distill[plot]')",
            file=sys.stderr,
        )
        return False
    lines = [(metrics.step, metrics.flat()) for metrics in history]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for name, label in curves.items():
            points = [(step, line[name]) for step, line in lines if line[name] is not None]
            axes.plot(*zip(*points, strict=True) if points else ([], []), marker=".", label=label)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
    return True
