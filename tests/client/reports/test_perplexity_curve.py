import sys
from pathlib import Path

import pytest

from client.recipes.measured_training import CurvePoint
from client.reports.perplexity_curve import draw_perplexity

POINTS = [
    CurvePoint(step=step, tokens=1000 * step, seconds=10.0 * step, perplexity=200.0 / (1 + step))
    for step in range(4)
]


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    assert draw_perplexity(POINTS, 17.0, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_note_and_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_perplexity(POINTS, 17.0, tmp_path / "curve.png")
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert not (tmp_path / "curve.png").exists()
