"""Processes that stand in for a service: what matters is how they start and how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.services.local import LocalService, ServiceStartError, log_tail

GOOD = """
import json, os, signal, sys, time
ready = sys.argv[sys.argv.index("--ready-file") + 1]
open(ready + ".new", "w").write(json.dumps({"address": "127.0.0.1:7", "pid": os.getpid()}))
os.rename(ready + ".new", ready)
print("ready", flush=True)
sys.stdin.read()
"""

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOOD + "time.sleep(60)\n"

BROKEN = "import sys; print('no such model'); sys.exit(2)"

SLOW = "import time; time.sleep(60)"


@pytest.fixture
def make_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(source: str) -> str:
        (tmp_path / "stand_in.py").write_text(source)
        return "stand_in"

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make


def service(module: str, tmp_path: Path, **timeouts: float) -> LocalService:
    return LocalService(module, ["--model", "x"], log_path=tmp_path / "log" / "a.log", **timeouts)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_lives_as_long_as_the_block(make_module, tmp_path: Path) -> None:
    local = service(make_module(GOOD), tmp_path)
    with local:
        pid = local.pid
        assert local.address == "127.0.0.1:7"
        assert exists(pid)
        local.check()
    assert not exists(pid)
    assert local.pid == 0
    assert local.log_path.read_text() == "ready\n"
    local.stop()  # a second time changes nothing


def test_an_error_in_the_block_ends_the_process(make_module, tmp_path: Path) -> None:
    local = service(make_module(GOOD), tmp_path)
    pids = []

    def use() -> None:
        with local:
            pids.append(local.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert not exists(pids[0])


@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2"])
def test_memory_comes_in_large_pages_unless_the_user_has_a_say(
    make_module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    telling = "import os; print(os.environ['GLIBC_TUNABLES'], flush=True)\n" + GOOD
    with service(make_module(telling), tmp_path) as local:
        first_line = local.log_path.read_text().splitlines()[0]
    assert first_line == (own or "glibc.malloc.hugetlb=1")


def test_a_process_that_does_not_stop_is_killed(make_module, tmp_path: Path) -> None:
    local = service(make_module(DEAF), tmp_path, stop_timeout_seconds=0.5)
    with local:
        pid = local.pid
    assert not exists(pid)


def test_a_service_that_cannot_start_shows_the_end_of_its_log(make_module, tmp_path: Path) -> None:
    with (
        pytest.raises(ServiceStartError, match=r"status 2.*a\.log.*\n  no such model"),
        service(make_module(BROKEN), tmp_path),
    ):
        pass


def test_a_log_that_goes_with_the_process_is_shown_and_not_named(make_module) -> None:
    local = LocalService(make_module(BROKEN))
    with pytest.raises(ServiceStartError, match=r"; the end of its log:\n  no such model"), local:
        pass


def test_a_service_that_takes_too_long_is_ended(make_module, tmp_path: Path) -> None:
    local = service(make_module(SLOW), tmp_path, start_timeout_seconds=0.5)
    with pytest.raises(ServiceStartError, match=r"not ready within 0\.5 s"), local:
        pass
    assert local.pid == 0


def test_a_service_that_died_is_noticed(make_module, tmp_path: Path) -> None:
    with service(make_module(GOOD), tmp_path) as local:
        os.kill(local.pid, signal.SIGKILL)
        os.waitid(os.P_PID, local.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ServiceStartError, match="status -9"):
            local.check()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(make_module, tmp_path: Path, number: int) -> None:
    program = f"""
import pathlib, time
from client.services.local import LocalService
with LocalService({make_module(GOOD)!r}, log_path=pathlib.Path({str(tmp_path / "a.log")!r})) as s:
    print(s.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(20)
    for _ in range(200):
        if not exists(pid):
            return
        time.sleep(0.05)
    pytest.fail("the service outlived its parent")


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert "No such file" in log_tail(log)
    log.write_text("")
    assert log_tail(log) == "  (empty)"
    log.write_text("".join(f"line {number}\n" for number in range(50)))
    assert log_tail(log, 2) == "  line 48\n  line 49"
