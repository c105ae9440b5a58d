"""The example scripts run against the contract; the README shows them."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.client.fake_server import serving
from tests.client.fake_student import FakeStudent, export_piece
from tests.client.fake_teacher import FakeTeacher

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_script(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_teacher_scoring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeTeacher()) as address:
        run_script("teacher_scoring.py", ["--address", address], monkeypatch)
    printed = capsys.readouterr().out
    assert "perplexity" in printed
    assert printed.rstrip().endswith("The capital of France is ParisAnswer: Paris.")


def test_student_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeStudent()
    fake.export_pieces = [export_piece("adapter_config.json", 0, b"{}", 2)]
    with serving(FakeTeacher()) as teacher, serving(fake) as student:
        addresses = ["--teacher-address", teacher, "--student-address", student]
        out = tmp_path / "out"
        run_script("student_training.py", [*addresses, "--out", str(out)], monkeypatch)
    assert fake.step == 4
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert "step 4: KL" in capsys.readouterr().out


def test_own_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The sea is blue.\nSo is the sky.\n\nGrass is green.\n\n\n")
    fake = FakeStudent()
    fake.export_pieces = [export_piece("adapter_config.json", 0, b"{}", 2)]
    with serving(FakeTeacher()) as teacher, serving(fake) as student:
        addresses = ["--teacher-address", teacher, "--student-address", student]
        out = tmp_path / "out"
        arguments = [str(texts), *addresses, "--steps", "2", "--out", str(out)]
        run_script("own_texts.py", arguments, monkeypatch)
    assert fake.step == 2
    assert (out / "adapter_config.json").is_file()
    assert "step 2: objective" in capsys.readouterr().out
