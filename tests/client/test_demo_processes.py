"""The demo with real service processes and a tiny random model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.client.test_demo import REQUIRED_KEYS, write_questions
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


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that contain a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if text in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


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
    out = tmp_path / "out"
    with subprocess.Popen(
        [*arguments, "--steps", "10000", "--targets", "inline", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 200
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(processes_with(str(out))) == 2  # this demo and its student, which has runs there
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "distill: interrupted\n"
    assert processes_with(str(out)) == []
    assert not (out / "summary.json").exists()


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
