"""The demo's summary for a person."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_EXAMPLE_COUNT = 4


def print_summary(summary: Mapping[str, Any], out: Path, console: Console | None = None) -> None:
    """Print what `run_demo` returned."""
    console = console or Console()
    table = Table(title="self-distillation with a privileged context", title_justify="left")
    table.add_column("held-out questions")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("teacher", justify="right")
    table.add_row(
        "KL on the teacher's answers (nats per token)",
        f"{summary['heldout_kl_before']:.3f}",
        f"{summary['heldout_kl_after']:.3f}",
        "",
    )
    table.add_row(
        "KL on the student's own answers",
        f"{summary['heldout_on_policy_kl_before']:.3f}",
        f"{summary['heldout_on_policy_kl_after']:.3f}",
        "",
    )
    table.add_row(
        "answered in the format `Answer: X.`",
        f"{summary['success_before']:.0%}",
        f"{summary['success_after']:.0%}",
        f"{summary['success_teacher']:.0%}",
    )
    table.add_row(
        "answered letter by letter as demonstrated",
        f"{summary['exact_before']:.0%}",
        f"{summary['exact_after']:.0%}",
        f"{summary['exact_teacher']:.0%}",
    )
    console.print(table)
    if summary["success_teacher"] < 0.5:
        console.print(
            "The teacher itself rarely answers in the format: a student can learn nothing from it.",
            style="bold",
        )
    for example in summary["examples"][:_EXAMPLE_COUNT]:
        console.print(f"{example['question']}", style="bold", markup=False, highlight=False)
        for moment in ("before", "after"):
            text = f"  {moment + ':':8}{_one_line(example[moment])}"
            console.print(text, markup=False, highlight=False, overflow="ellipsis", no_wrap=True)
    console.print("KL: from the teacher to the student, over the top K and the tail", style="dim")
    fall = 1 - summary["heldout_kl_after"] / summary["heldout_kl_before"]
    for text in (
        f"objective {summary['objective_first']:.3f} -> {summary['objective_last']:.3f} in "
        f"{summary['step_count']} steps; held-out KL {'down' if fall >= 0 else 'up'} by "
        f"{abs(fall):.0%} over {summary['heldout_questions']} questions",
        f"teacher scores {summary['tokens_per_second_teacher']:.0f} tokens/s, student trains "
        f"{summary['tokens_per_second_student']:.0f} and samples "
        f"{summary['tokens_per_second_sampling']:.0f} tokens/s",
        f"{summary['wall_seconds']:.0f} s in all: {summary['ready_seconds']:.0f} s until both "
        f"services were ready, {summary['training_seconds']:.0f} s of training (sampling "
        f"{summary['sampling_seconds']:.0f}, scoring {summary['scoring_seconds']:.0f}, forward "
        f"and backward {summary['forward_backward_seconds']:.0f}), "
        f"{summary['evaluation_before_seconds'] + summary['evaluation_after_seconds']:.0f} s of "
        "evaluation",
        f"results: {out}/summary.json, metrics.jsonl, "
        + ("curves.png, " if summary["curves"] else "")
        + "adapter/ (PEFT)",
    ):
        console.print(text, markup=False, highlight=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
