"""The compression demo with real service processes and a tiny random model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load_file

from client.demos.compress_summary import print_compress_summary
from tests.support.processes import interrupt_while_training, processes_with
from tests.support.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("compress")
    model = write_tiny_model(directory / "model", layer_count=4)
    text = directory / "text.txt"
    text.write_text("\n\n".join(f"{index} " + "the words of it " * 130 for index in range(8)))
    return [
        *(sys.executable, "-m", "client.cli", "demo-compress"),
        *("--model", str(model), "--keep-layers", "0,3", "--text-file", str(text)),
        *("--sequence-tokens", "32", "--heldout-sequences", "4", "--sequences-per-step", "2"),
    ]


def test_a_pruned_student_learns_and_leaves_as_a_model(
    arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [*arguments, "--steps", "6", "--learning-rate", "0.01", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["kept_layers"] == [0, 3]
    assert (summary["teacher"]["layer_count"], summary["student"]["layer_count"]) == (4, 2)
    assert summary["kl_last"] < summary["kl_first"]
    assert summary["heldout_tokens"] == 4 * 31
    assert summary["tokens_trained"] == 6 * 2 * 31
    assert [point["step"] for point in summary["curve"]] == [0, 2, 3, 4, 5, 6]
    assert summary["curve"][0]["perplexity"] == summary["perplexity_before"]
    assert summary["curve"][-1]["perplexity"] == summary["perplexity_after"]
    assert summary["perplexity_after"] != summary["perplexity_before"]
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    pruned, student = (
        load_file(out / name / "model.safetensors") for name in ("pruned", "student")
    )
    assert {name: tensor.shape for name, tensor in pruned.items()} == {
        name: tensor.shape for name, tensor in student.items()
    }
    assert any((student[name] != pruned[name]).any() for name in pruned)
    assert "tokens/s: score" in done.stdout
    assert processes_with(str(out)) == []


@pytest.mark.slow  # as test_sdft_processes.py checks of the other demo
def test_ctrl_c_while_training_leaves_no_process(arguments: list[str], tmp_path: Path) -> None:
    interrupt_while_training(arguments, tmp_path / "out")


def test_layers_that_the_model_does_not_have_are_refused_before_anything_starts(
    arguments: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*arguments, "--keep-layers", "0-4", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "distill: error: keep_layers: must be in [0, 3], for the model has 4 layers; got 4\n"
    )
    assert not (tmp_path / "teacher.log").exists()


def test_the_summary_says_what_was_won_back_or_that_nothing_was_lost(tmp_path: Path) -> None:
    summary = {
        "teacher": {"layer_count": 30, "parameter_count": 134_515_008},
        "student": {"layer_count": 15, "parameter_count": 81_000_000},
        "kept_layers": [0, 29],
        "teacher_perplexity": 10.0,
        "perplexity_before": 1000.0,
        "perplexity_after": 20.0,
        "tokens_trained": 100_000,
        "step_count": 100,
        "heldout_tokens": 6000,
        "curve_drawn": True,
        "settings": {"step_count": 100},
        **dict.fromkeys(
            [
                *("tokens_per_second_teacher", "tokens_per_second_student"),
                *("tokens_per_second_training", "wall_seconds", "ready_seconds"),
                *("training_seconds", "scoring_seconds", "forward_backward_seconds"),
                "evaluation_seconds",
            ],
            1.0,
        ),
    }
    for share, said in ((0.85, "85% of the lost log-perplexity won back"), (None, "no worse")):
        console = Console(record=True, width=120)
        print_compress_summary({**summary, "share_won_back": share}, tmp_path, console)
        text = console.export_text()
        assert said in text
        assert "100,000 tokens in 100 steps" in text
        assert "81.0 M" in text
    console = Console(record=True, width=120)
    slow = {**summary, "share_won_back": 0.85, "step_count": 40}
    print_compress_summary(slow, tmp_path, console)
    assert "in 40 of 100 steps, when the time was over" in console.export_text()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(900)
def test_the_real_model_wins_back_a_good_part_in_a_few_steps(tmp_path: Path) -> None:
    """Of the demo's course the first minutes; the README has the whole."""
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "client.cli", "demo-compress", "--steps", "16"),
            *("--heldout-sequences", "8", "--out", str(out)),
        ],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["teacher"]["layer_count"] == 30
    assert summary["student"]["layer_count"] == 15
    assert summary["teacher_perplexity"] < 30
    assert summary["perplexity_before"] > 5 * summary["teacher_perplexity"]
    assert summary["share_won_back"] > 0.3
