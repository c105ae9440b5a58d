import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.cli import build_parser, main
from client.commands import COMMANDS, command, demo
from client.teacher import TeacherClient
from tests.client.fake_server import serving
from tests.client.fake_student import FakeStudent
from tests.client.fake_teacher import FakeTeacher


@pytest.fixture
def teacher_address(fake_teacher: FakeTeacher):
    with serving(fake_teacher) as address:
        yield address


@pytest.fixture
def student_address(fake_student: FakeStudent):
    with serving(fake_student) as address:
        yield address


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_score_prints_a_row_for_every_token(
    teacher_address: str, teacher: TeacherClient, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "What is the capital of France?"
    main(["score", "--text", text, "-k", "3", "--teacher-address", teacher_address])
    printed = capsys.readouterr().out
    token_ids = teacher.tokenizer().encode(text)
    rows = re.findall(r"^│\s+(\d+) │", printed, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(len(token_ids)))
    (scores,) = teacher.score([token_ids], 3)
    for index in range(len(scores.token_ids)):
        assert f"{scores.prompt_log_probs[index]:.3f}" in printed
        assert f"{scores.entropies[index]:.2f}" in printed
        best = teacher.tokenizer().token_text(int(scores.token_ids[index, 0]))
        assert repr(best).replace(" ", "\u00a0") in printed


def test_score_needs_two_tokens(teacher_address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["score", "--text", "W", "--teacher-address", teacher_address])
    assert caught.value.code == 1
    assert "--text: must have 2 or more tokens, got 1" in capsys.readouterr().err


def test_sample_prints_what_the_model_said(
    teacher_address: str, student_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sample", "--text", "Capital?", "--teacher-address", teacher_address])
    assert capsys.readouterr().out == "Answer: Paris.\n"
    main(["sample", "--text", "Capital?", "--student-address", student_address, "--run", "run"])
    assert capsys.readouterr().out == "Paris is the capital\n"


def test_info_runs_and_checkpoints(
    teacher_address: str,
    student_address: str,
    fake_student: FakeStudent,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["info", "--teacher-address", teacher_address, "--student-address", student_address])
    printed = capsys.readouterr().out
    assert "max_top_k" in printed
    assert "main" in printed
    fake_student.step = 7
    main(["runs", "--student-address", student_address])
    assert "w7" in capsys.readouterr().out
    main(["checkpoints", "run", "--student-address", student_address])
    assert "1.0 MiB" in capsys.readouterr().out


def test_names_of_runs_are_whole_on_a_narrow_terminal(
    student_address: str,
    fake_student: FakeStudent,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "a-run-whose-name-somebody-will-want-to-copy"
    fake_student.run_id = name
    monkeypatch.setenv("COLUMNS", "70")
    main(["runs", "--student-address", student_address])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(row.split("│")[1].strip() for row in rows) == name


DYING_TEACHER = """
import json, pathlib, socket, sys
port = socket.create_server(("127.0.0.1", 0))
ready = pathlib.Path(sys.argv[sys.argv.index("--ready-file") + 1])
ready.write_text(json.dumps({"address": f"127.0.0.1:{port.getsockname()[1]}"}))
port.accept()
sys.exit("out of memory")
"""
"""Ends when it is called."""


def test_a_teacher_that_dies_during_its_call_shows_the_end_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying_teacher.py").write_text(DYING_TEACHER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(command, "TEACHER_MODULE", "dying_teacher")
    with pytest.raises(SystemExit) as caught:
        main(["score", "--text", "The capital"])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "dying_teacher ended with status 1; the end of its log:\n  out of memory" in error


def test_failures_are_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["runs", "--student-address", "127.0.0.1:1", "--timeout-seconds", "0.5"])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("distill: error: UNAVAILABLE")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--training-file", "/absent.jsonl"])
    assert caught.value.code == 1
    assert "absent.jsonl: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["score"],
        ["score", "--text", "x", "--teacher-address", "localhost"],
        ["runs", "--student-address", "http://localhost:50052"],
        ["demo", "--teacher-address", "localhost", "--student-address", "localhost:2"],
        ["info", "--teacher-address", "::1"],
        ["score", "--text", ""],
        ["sample", "--text", ""],
        ["score", "--text", "x", "-k", "0"],
        ["score", "--text", "x", "--temperature", "0"],
        ["sample", "--text", "x", "--run", "a"],
        ["sample", "--text", "x", "--student-address", "a:1", "--checkpoint", "c"],
        ["sample", "--text", "x", "--student-address", "a:1", "--teacher-address", "b:1"],
        ["info"],
        ["demo", "--steps", "0"],
        ["demo", "--objective", "cross_entropy"],
        ["demo", "--teacher-address", "a:1"],
        ["demo-compress", "--sequence-tokens", "1"],
        ["demo-compress", "--model", "another"],
        ["demo-compress", "--warmup-steps", "-1"],
        ["prune", "m", "--keep-layers", "2"],
        ["prune", "m", "--out", "d"],
        ["score", "--text", "x", "--model", "m", "--teacher-address", "a:1"],
    ],
)
def test_wrong_arguments_exit_with_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_prune_makes_a_directory_and_says_which_layers_it_kept(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    argv = ["prune", str(tiny_model_directory), "--keep-layers", "1", "--out", str(out)]
    main(argv)
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err.splitlines()[-1] == "kept 1 layers: 0"
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1
    for wrong, problem in (
        (argv, "'half' exists and is not an empty directory"),
        ([*argv[:-1], str(tmp_path / "new"), "--keep-layers", "0-2"], "keep_layers: must be in"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 1
        assert problem in capsys.readouterr().err


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_names_every_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "--" in capsys.readouterr().out
    subparser = build_parser()._subparsers._group_actions[0].choices[command]
    for action in subparser._actions:
        required = action.required or not action.option_strings
        if action.dest != "help" and not required:
            assert action.help is not None
            assert "default" in action.help or action.nargs == 0 or command == "info", action.dest


def test_the_client_imports_no_jax() -> None:
    program = (
        "import sys, client.cli, client.recipes.off_policy; client.cli.build_parser(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib')])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_ctrl_c_exits_with_130_and_leaves_no_process(tmp_path: Path) -> None:
    # A teacher that never becomes ready: the demo waits for it when the signal comes.
    (tmp_path / "teacher_service.py").write_text(
        "import os, sys, time; print(os.getpid(), flush=True); time.sleep(120)"
    )
    out = tmp_path / "out"
    # A shadow of the package: found first because the command runs in this directory.
    process = subprocess.Popen(
        [sys.executable, "-m", "client.cli", "demo", "--out", str(out)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with process:
        log = out / "teacher.log"
        pid = _first_number(log)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "distill: interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ctrl_c_during_the_imports_is_an_interruption_like_any_other(tmp_path: Path) -> None:
    # A shadow of the first heavy import: the signal comes in the middle of it.
    (tmp_path / "grpc.py").write_text(
        "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(20)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "distill: interrupted\n")


def _first_number(path: Path) -> int:
    for _ in range(400):
        if path.exists() and path.read_text().endswith("\n"):
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError("the service did not start")


def test_shipped_questions_are_enough_and_disjoint() -> None:
    arguments = build_parser().parse_args(["demo"])
    for path in (arguments.training_file, arguments.heldout_file):
        for line in path.read_text().splitlines():
            assert json.loads(line)["demonstration"].startswith("Answer: ")


@pytest.mark.parametrize("kind", ["training", "heldout"])
def test_demo_without_the_source_tree_says_which_file_to_give(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "_EXAMPLES", tmp_path / "examples")
    given = {"training": "--heldout-file", "heldout": "--training-file"}[kind]
    with pytest.raises(SystemExit) as caught:
        main(["demo", given, str(tmp_path / "own.jsonl")])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"distill: error: --{kind}-file: must be given")
    assert "examples/questions_" in error


def test_models_lists_every_family_for_people_and_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["models", "--json"])
    families = json.loads(capsys.readouterr().out)
    model_types = [name for family in families for name in family["model_types"]]
    assert {"llama", "qwen2", "qwen3", "mistral", "smollm3", "gemma3_text"} <= set(model_types)
    main(["models"])
    printed = capsys.readouterr().out
    for family in families:
        for text in (family["title"], *family["checkpoints"], *family["features"]):
            assert text in printed
