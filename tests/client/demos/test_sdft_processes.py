"""The demo with real service processes and a tiny random model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.demos.test_sdft import REQUIRED_KEYS, write_questions
from tests.support.processes import interrupt_while_training, processes_with
from tests.support.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("demo")
    model = write_tiny_model(directory / "model")
    training = write_questions(directory / "train.jsonl", "abcde")
    heldout = write_questions(directory / "heldout.jsonl", "xyz")
    return [
        *(sys.executable, "-m", "client.cli", "demo"),
        *("--model", str(model)),
        *("--training-file", str(training), "--heldout-file", str(heldout)),
        *("--max-completion-tokens", "4", "--prompts-per-step", "2", "--rank", "4"),
    ]


def test_a_pair_of_processes_runs_the_recipe(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [*arguments, "--steps", "2", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= REQUIRED_KEYS
    assert summary["heldout_kl_before"] > 0
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["gradient_norm"] > 0 and line["target_bytes"] > 0 for line in lines)
    assert "stopped" in (out / "teacher.log").read_text()
    assert "stopped" in (out / "student.log").read_text()
    assert processes_with(str(out)) == []


def test_ctrl_c_while_training_leaves_no_process(arguments: list[str], tmp_path: Path) -> None:
    interrupt_while_training(arguments, tmp_path / "out")


def test_a_model_that_is_not_there_is_reported_with_the_log(
    arguments: list[str], tmp_path: Path
) -> None:
    index = arguments.index("--model") + 1
    absent = [*arguments[:index], str(tmp_path / "absent"), *arguments[index + 1 :]]
    done = subprocess.run(
        [*absent, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(
        r"distill: error: teacher_service ended with status 2.*teacher\.log", done.stderr
    )
    assert "distill-teacher: error:" in done.stderr
    assert "Traceback" not in done.stderr
