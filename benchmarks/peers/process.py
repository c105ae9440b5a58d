"""A worker in its own process, from the benchmark's side."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Task

ROOT = Path(__file__).parent.parent.parent


class PeerError(Exception):
    """A worker answered with an error or ended."""


@dataclass(frozen=True, kw_only=True)
class PeerCommand:
    """How a worker is started."""

    name: str
    """Of the side: "torch_f32", "torch_bf16" or "peer"."""

    python: str
    """Interpreter of its environment."""

    module: str
    """Of the worker."""

    dtype: str
    """In which it computes."""


class Peer:
    """A worker that starts with its first task and stays until it is closed."""

    def __init__(self, command: PeerCommand, *, threads: int, is_verbose: bool) -> None:
        """Args:
        command: starts the worker.
        threads: it may compute with.
        is_verbose: let it write to stderr.
        """
        self._command = command
        self._is_verbose = is_verbose
        self._threads = threads
        self._process: subprocess.Popen[str] | None = None
        self._directory: Path | None = None

    @property
    def name(self) -> str:
        """Of the side."""
        return self._command.name

    def prepare(self, directory: Path, task: Task) -> Callable[[], tuple[float, float, int]]:
        """Load the model unless it is loaded, and warm up.

        Returns:
            A function that does the task. It returns the seconds, as the worker measured them, the
            digest, and the most memory that the process has held so far.

        Raises:
            PeerError: the worker cannot do it.
        """
        if self._directory != directory:
            self._directory = None
            load = {"directory": str(directory), "dtype": self._command.dtype}
            self._ask({"op": "load", "threads": self._threads, **load})
            self._directory = directory
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            self._ask({"op": "prepare", "task": task.write(Path(file.name))})

        def run() -> tuple[float, float, int]:
            answer = self._ask({"op": "run"})
            return answer["seconds"], answer["digest"], answer["peak_process_bytes"]

        return run

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()  # closes its stdin, waits, closes its stdout
            self._process = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [self._command.python, "-m", self._command.module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if self._is_verbose else subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.communicate()
            code = self._process.returncode
            self._process, self._directory = None, None
            raise PeerError(f"{self.name}: the worker ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer


def torch_python(chosen: str | None) -> str | None:
    """The interpreter that has torch, without importing it here; None: there is none.

    Args:
        chosen: by the caller; otherwise this one, or that of `make environment-parity`.
    """
    candidates = [chosen] if chosen else [sys.executable, str(ROOT / ".venv-parity/bin/python")]
    return next((python for python in candidates if _has(python, "torch")), None)


def skyrl_python(chosen: str | None) -> str | None:
    """The interpreter that has skyrl: the chosen one, or that of `make bench-peer`."""
    candidates = [chosen] if chosen else [str(ROOT / ".venv-skyrl/bin/python")]
    return next((python for python in candidates if _has(python, "skyrl")), None)


def _has(python: str, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], cwd="/", check=False).returncode == 0
    except OSError:
        return False
