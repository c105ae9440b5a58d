"""Perplexity over the course of a training, as a picture."""

import sys
from collections.abc import Sequence
from pathlib import Path

from client.recipes.measured_training import CurvePoint


def draw_perplexity(points: Sequence[CurvePoint], teacher_perplexity: float, path: Path) -> bool:
    """Draw held-out perplexity over tokens and over seconds as a PNG.

    Returns:
        False, with a note on standard error, when matplotlib is not installed.
    """
    try:
        # Without pyplot: no global state and no display.
        from matplotlib.figure import Figure
        from matplotlib.ticker import ScalarFormatter
    except ImportError:
        print(
            "no curve: matplotlib is not installed (pip install 'topk-distill[plot]')",
            file=sys.stderr,
        )
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    perplexities = [point.perplexity for point in points]
    tokens = [float(point.tokens) for point in points]
    seconds = [point.seconds for point in points]
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, places, label in (
        (left, tokens, "tokens trained"),
        (right, seconds, "seconds of training"),
    ):
        axes.plot(places, perplexities, marker="o", label="student")
        axes.axhline(teacher_perplexity, color="gray", linestyle="--", label="teacher")
        axes.set_xlabel(label)
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    left.set_ylabel("held-out perplexity")
    # Plain numbers: 40, not 4 x 10^1.
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter(ScalarFormatter())
    figure.savefig(path, dpi=110)
    return True
