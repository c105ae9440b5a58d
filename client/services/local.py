"""Services as processes of this machine, started and stopped with the program that uses them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

TEACHER_MODULE = "teacher_service"
STUDENT_MODULE = "student_service"

_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Large blocks of memory in large pages: training is some 4 % faster. glibc reads it when a process
starts; other C libraries ignore it."""


class ServiceStartError(Exception):
    """A service did not start, or ended; the message holds the end of its log."""


class LocalService:
    """A service process on a free loopback port; a context manager.

    The process is in a group of its own, so that Ctrl-C in a terminal reaches only this program,
    which then stops it in order. Should this program be killed, the service sees the end of its
    standard input and stops by itself.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        log_path: Path | None = None,
        start_timeout_seconds: float = 300.0,
        stop_timeout_seconds: float = 15.0,
    ) -> None:
        """Describe the process; `with` starts it.

        Args:
            module: TEACHER_MODULE or STUDENT_MODULE.
            arguments: of the command line, without address and ready file.
            log_path: where its output goes; None: to a file that lives as long as the process.
            start_timeout_seconds: time to load the model; a first start converts it as well.
            stop_timeout_seconds: time to finish the work in progress, then the process is killed.
        """
        self.module = module
        self._given_log_path = log_path
        self.address = ""
        self._arguments = tuple(arguments)
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._workspace: tempfile.TemporaryDirectory[str] | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 when it is not running."""
        return 0 if self._process is None else self._process.pid

    @property
    def log_path(self) -> Path:
        """Where the output goes. Raises ServiceStartError where it went with the process."""
        return self._given_log_path or self._directory / "service.log"

    def __enter__(self) -> Self:
        self.launch()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Start the process without waiting; `stop` must follow in every case."""
        self._workspace = tempfile.TemporaryDirectory(prefix="distill-")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("wb")
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", self.module),
                    *("--listen", "127.0.0.1:0"),
                    *("--ready-file", str(self._ready_file)),
                    "--exit-when-stdin-closes",
                    *self._arguments,
                ],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**_LARGE_PAGES, **os.environ},
            )
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self) -> str:
        """Wait until the model is loaded and the port answers; returns the address.

        Raises:
            ServiceStartError: the process ended or took too long.
        """
        deadline = time.monotonic() + self._start_timeout_seconds
        while not self._ready_file.exists():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceStartError(
                    f"{self.module} was not ready within {self._start_timeout_seconds:g} s"
                    + self._log_end()
                )
            time.sleep(0.05)
        self.address = json.loads(self._ready_file.read_text())["address"]
        return self.address

    def check(self) -> None:
        """Raise ServiceStartError if the process has ended."""
        if self._process is None:
            raise ServiceStartError(f"{self.module} is not running")
        status = self._process.poll()
        if status is not None:
            raise ServiceStartError(f"{self.module} ended with status {status}" + self._log_end())

    def stop(self) -> None:
        """Ask the process to stop, kill it if it does not, and clean up. May be repeated."""
        process, self._process = self._process, None
        try:
            if process is not None:
                self._end(process)
        finally:
            if self._log is not None:
                self._log.close()
            if self._workspace is not None:
                self._workspace.cleanup()
            self._log = self._workspace = None

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.terminate()
            process.wait(self._stop_timeout_seconds)
        except BaseException as error:
            # The process is too slow, or a second Ctrl-C came: it is killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            if process.stdin is not None:
                process.stdin.close()

    @property
    def _directory(self) -> Path:
        if self._workspace is None:
            raise ServiceStartError(f"{self.module} is not running")
        return Path(self._workspace.name)

    @property
    def _ready_file(self) -> Path:
        return self._directory / "ready.json"

    def _log_end(self) -> str:
        # A log in the workspace is deleted before anybody reads the message, so it is not named.
        name = "its log" if self._given_log_path is None else str(self.log_path)
        return f"; the end of {name}:\n{log_tail(self.log_path)}"


def log_tail(path: Path, line_count: int = 20) -> str:
    """The last lines of a log, indented; a note when it is empty or missing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"  ({error.strerror})"
    return "\n".join(f"  {line}" for line in lines[-line_count:]) or "  (empty)"
