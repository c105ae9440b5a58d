"""The summary of `distill demo-compress` for a person."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_compress_summary(
    summary: Mapping[str, Any], out: Path, console: Console | None = None
) -> None:
    """Print what `run_compress` returned."""
    console = console or Console()
    teacher, student = summary["teacher"], summary["student"]
    table = Table(title="pruning and off-policy distillation", title_justify="left")
    table.add_column("held-out text")
    for name in ("teacher", "pruned", "distilled"):
        table.add_column(name, justify="right")
    table.add_row(
        "perplexity",
        f"{summary['teacher_perplexity']:.2f}",
        f"{summary['perplexity_before']:.2f}",
        f"{summary['perplexity_after']:.2f}",
    )
    table.add_row("layers", *(str(one["layer_count"]) for one in (teacher, student, student)))
    table.add_row(
        "parameters",
        *(f"{one['parameter_count'] / 1e6:.1f} M" for one in (teacher, student, student)),
    )
    console.print(table)
    share = summary["share_won_back"]
    for text in (
        (
            "the pruned model predicts no worse than the teacher: nothing to win back; trained on "
            if share is None
            else f"{share:.0%} of the lost log-perplexity won back with "
        )
        + f"{summary['tokens_trained']:,} tokens in {_steps(summary)} "
        f"({summary['heldout_tokens']:,} tokens held out)",
        f"kept layers: {', '.join(map(str, summary['kept_layers']))}",
        f"teacher scores {summary['tokens_per_second_teacher']:.0f} tokens/s, student trains "
        f"{summary['tokens_per_second_student']:.0f}, both and the optimizer "
        f"{summary['tokens_per_second_training']:.0f}",
        f"{summary['wall_seconds']:.0f} s in all: {summary['ready_seconds']:.0f} s until both "
        f"services were ready, {summary['training_seconds']:.0f} s of training (scoring "
        f"{summary['scoring_seconds']:.0f}, forward and backward "
        f"{summary['forward_backward_seconds']:.0f}), {summary['evaluation_seconds']:.0f} s of "
        "measuring",
        f"results: {out}/summary.json, metrics.jsonl, "
        + ("perplexity.png, " if summary["curve_drawn"] else "")
        + "pruned/ and student/ (Hugging Face)",
    ):
        console.print(text, markup=False, highlight=False)


def _steps(summary: Mapping[str, Any]) -> str:
    done, most = summary["step_count"], summary["settings"]["step_count"]
    return f"{done} steps" if done == most else f"{done} of {most} steps, when the time was over"
