"""Holding the device queue's worker."""

import threading

from distill.engine.device_queue import DeviceQueue
from tests.support.waiting import WAIT_SECONDS


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
