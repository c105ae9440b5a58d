"""A change of the protos that breaks a client is refused, but for the accepted renames."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUF = Path(sys.executable).with_name("buf")
BEFORE = {"prompt_index": "row", "first_row": "position_offset", "draw_weights": "weights"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository whose last commit has the contract before the accepted renames."""
    for name in ("protos", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    rename(tmp_path, BEFORE)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(checkout: Path, *arguments: str) -> None:
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *author, *arguments], cwd=checkout, check=True)


def commit(checkout: Path) -> None:
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "a state of the contract")


def rename(checkout: Path, names: dict[str, str]) -> None:
    """Rename fields of `TopKChunk`."""
    path = checkout / "protos/distill/v1/scoring.proto"
    before, start, rest = path.read_text().partition("message TopKChunk {")
    body, end, after = rest.partition("\n}\n")
    for old, new in names.items():
        assert f" {old} = " in body
        body = body.replace(f" {old} = ", f" {new} = ")
    path.write_text(before + start + body + end + after)


def check(checkout: Path) -> subprocess.CompletedProcess[str]:
    commit(checkout)
    command = [str(checkout / "scripts/check_breaking.sh"), str(BUF)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_accepted_renames_pass(checkout: Path) -> None:
    rename(checkout, {old: new for new, old in BEFORE.items()})
    result = check(checkout)
    assert result.returncode == 0, result.stderr


def test_any_other_rename_is_refused_by_name(checkout: Path) -> None:
    rename(checkout, {"entropies": "row_entropies"} | {old: new for new, old in BEFORE.items()})
    result = check(checkout)
    assert result.returncode == 1
    assert 'changed name from "entropies" to "row_entropies"' in result.stderr
    assert "prompt_index" not in result.stderr


def test_a_file_that_is_gone_is_refused_by_name(checkout: Path) -> None:
    (checkout / "protos/distill/v1/teacher_service.proto").unlink()
    result = check(checkout)
    assert result.returncode == 1
    assert "teacher_service.proto" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_proto_is_no_accepted_break(checkout: Path) -> None:
    (checkout / "protos/distill/v1/scoring.proto").write_text("no proto")
    assert check(checkout).returncode != 0
