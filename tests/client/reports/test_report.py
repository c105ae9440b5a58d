import json
import sys
from pathlib import Path

import pytest

from client.recipes.metrics import StepMetrics
from client.reports.report import (
    append_json_line,
    describe_step,
    draw_curves,
    open_reporter,
    tokens_per_second,
)
from distill.files import replace_json


def metrics(step: int, *, sampled: int = 10, kl: float | None = 0.5) -> StepMetrics:
    return StepMetrics(
        step=step,
        objective=1.0 / step,
        batch={
            **({} if kl is None else {"tail_bucket_kl": kl}),
            "teacher_entropy": 1.0,
            "student_entropy": 2.0,
            "student_support_mass": 0.5,
            "top_k_overlap": 0.5,
            "top_1_agreement": 0.25,
        },
        row_count=10,
        student_token_count=100,
        teacher_token_count=200 * step,
        sampled_token_count=sampled,
        target_bytes=5,
        sampling_seconds=2.0 if sampled else 0.0,
        scoring_seconds=0.5,
        training_seconds=0.25,
        step_seconds=3.0,
        gradient_norm=1.5,
        update_norm=0.1,
    )


def test_rates_leave_out_the_first_step_which_compiles() -> None:
    history = [metrics(1), metrics(2), metrics(3)]
    rate = {"count": "teacher_token_count", "seconds": "scoring_seconds"}
    assert tokens_per_second(history, **rate) == 1000
    assert tokens_per_second(history[:1], **rate) == 400
    assert tokens_per_second(history, skip_first=False, **rate) == 800


def test_a_step_is_one_line_with_the_rate_of_each_stage() -> None:
    assert describe_step(metrics(2)).endswith("tokens/s: sample 5, score 800, train 400")
    off_policy = describe_step(metrics(2, sampled=0, kl=None))
    assert "sample" not in off_policy
    assert "KL -" in off_policy


def test_output_that_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with open_reporter(3) as reporter:
        reporter.line("[not markup]")
        reporter.step(metrics(2))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "[not markup]"
    assert printed[1].startswith("step   2/3  objective  0.500  KL 0.500")
    assert "\x1b" not in printed[1]


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with open_reporter(2) as reporter:
        reporter.step(metrics(1))
        reporter.step(metrics(2))
    assert "2/2" in capsys.readouterr().out


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    for step in (1, 2):
        append_json_line(tmp_path / "m.jsonl", metrics(step).flat())
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["tail_bucket_kl"] == 0.5
    assert lines[0]["teacher_support_mass"] is None


def test_a_summary_is_replaced_whole(tmp_path: Path) -> None:
    replace_json(tmp_path / "s.json", {"a": 1})
    replace_json(tmp_path / "s.json", {"b": 2})
    assert json.loads((tmp_path / "s.json").read_text()) == {"b": 2}
    assert len(list(tmp_path.iterdir())) == 1


def test_curves_leave_out_what_is_not_defined(tmp_path: Path) -> None:
    assert draw_curves([metrics(1), metrics(2, kl=None)], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_clear_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_curves([metrics(1)], tmp_path / "c.png")
    assert "pip install 'topk-distill[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()
