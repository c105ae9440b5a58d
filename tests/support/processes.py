"""Processes that a test starts: which there are, and that none is left after Ctrl-C."""

import os
import signal
import subprocess
import time
from pathlib import Path


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


def interrupt_while_training(arguments: list[str], out: Path) -> None:
    """Start a demo, press Ctrl-C after its first step, and check that nothing is left of it."""
    with subprocess.Popen(
        [*arguments, "--steps", "10000", "--targets", "inline", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 200
        try:
            while not (out / "metrics.jsonl").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            # The demo and its student, which has runs there.
            assert len(processes_with(str(out))) == 2
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()  # or the end of the block would wait for one that hangs
    assert process.returncode == 130
    assert error == "distill: interrupted\n"
    assert processes_with(str(out)) == []
    assert not (out / "summary.json").exists()
