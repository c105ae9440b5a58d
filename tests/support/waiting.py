"""Waiting for what other threads and processes do."""

import time
from collections.abc import Callable

WAIT_SECONDS = 20.0
"""Longest wait for something that takes milliseconds unless it is broken."""


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Return when the condition is true; fail where it is not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.002)
