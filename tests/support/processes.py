"""A service as a process of its own, stopped however the test ends."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 120.0
STOP_SECONDS = 30.0


class ServiceProcess:
    """`python -m teacher_service` or `student_service` on a free loopback port."""

    def __init__(self, module: str, directory: Path, *arguments: str, model: Path) -> None:
        self._ready_file = directory / "ready.json"
        self._log = directory / "service.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", module),
                    *("--model", str(model), "--listen", "127.0.0.1:0"),
                    *("--ready-file", str(self._ready_file), "--exit-when-stdin-closes"),
                    *("--cache-dir", str(directory.parent / "cache")),
                    *arguments,
                ],
                stdin=subprocess.PIPE,
                stderr=log,
            )
        self.address = ""

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_SECONDS
        while not self._ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"the service did not start:\n{self.log()}")
            time.sleep(0.05)
        self.address = json.loads(self._ready_file.read_text())["address"]
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        code = self.stop()
        if error is None:
            assert code == 0, f"the service ended with {code}:\n{self.log()}"

    def stop(self) -> int:
        """Close its standard input, which ends it, and return its exit code."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text()
