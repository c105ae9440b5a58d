"""Signals of a service process without a model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import WAIT_SECONDS, wait_until

PROGRAM = """
import argparse, signal, sys, threading, time
from distill.rpc.options import add_server_arguments, parse_server_options
from distill.rpc.server import Service, serve

parser = argparse.ArgumentParser()
add_server_arguments(parser, default_port=0)
options = parse_server_options(parser, parser.parse_args(sys.argv[2:]))
seconds = float(sys.argv[1])


def deliver_signals():
    # To this thread, which is not the main one.
    for line in sys.stdin:
        signal.pthread_kill(threading.get_ident(), int(line))


def close(grace_seconds):
    print("closing", file=sys.stderr, flush=True)
    time.sleep(seconds)


threading.Thread(target=deliver_signals, daemon=True).start()
serve(options, program="trivial", load=lambda _: Service(
    full_name="test.Trivial",
    description="nothing",
    register=lambda server: None,
    close=close,
))
"""


class Process:
    """A service that takes `close_seconds` to close."""

    def __init__(self, directory: Path, close_seconds: float = 0.0) -> None:
        ready, self._log = directory / "ready.json", directory / "log"
        command = [sys.executable, "-c", PROGRAM, str(close_seconds)]
        command += ["--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        with self._log.open("wb") as log_file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=log_file, text=True, bufsize=1
            )
        wait_until(lambda: ready.exists() or self._process.poll() is not None)
        assert json.loads(ready.read_text())["pid"] == self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def send_to_another_thread(self, number: signal.Signals) -> None:
        """As the system may, and sometimes does after a freeze."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number.value}\n")

    def freeze_and_continue(self) -> None:
        self.send(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        # All its threads are stopped, not just the one that the system told the parent of.
        time.sleep(0.05)
        self.send(signal.SIGCONT)

    def wait(self) -> int:
        return self._process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_with_code_0(process: Process, number: signal.Signals) -> None:
    process.send(number)
    assert process.wait() == 0
    assert f"stopping: {number.name}" in process.log


def test_a_signal_that_the_main_thread_does_not_get_ends_the_service_too(
    process: Process,
) -> None:
    process.send_to_another_thread(signal.SIGTERM)
    assert process.wait() == 0
    assert "stopping: SIGTERM" in process.log


def test_a_signal_after_a_freeze_ends_the_service_with_code_0(process: Process) -> None:
    process.freeze_and_continue()
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "stopping: SIGTERM" in process.log


def test_a_second_signal_ends_the_stop_at_once_whichever_thread_gets_it(tmp_path: Path) -> None:
    process = Process(tmp_path, close_seconds=60)
    try:
        process.send(signal.SIGTERM)
        wait_until(lambda: "closing" in process.log)
        time.sleep(0.1)  # until the main thread sleeps
        process.send_to_another_thread(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
    finally:
        process.kill()
