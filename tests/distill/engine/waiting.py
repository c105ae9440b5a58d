"""Waiting for what the device queue's worker does, and holding it."""

import threading
import time
from collections.abc import Callable

from distill.engine.device_queue import DeviceQueue

WAIT_SECONDS = 20.0
"""Longest wait for something that takes milliseconds unless it is broken."""


class Gate:
    """Holds the worker inside a piece until it is opened."""

    def __init__(self, queue: DeviceQueue) -> None:
        self._open = threading.Event()
        entered = threading.Event()

        def hold() -> None:
            entered.set()
            assert self._open.wait(WAIT_SECONDS)

        self.future = queue.submit(hold)
        assert entered.wait(WAIT_SECONDS)

    def open(self) -> None:
        self._open.set()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.002)
