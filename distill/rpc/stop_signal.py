"""SIGTERM and SIGINT of a service process."""

import os
import signal
import threading
from queue import SimpleQueue
from types import FrameType


class StopSignal:
    """SIGTERM and SIGINT: end a start at once, a running service gracefully, a drain at once.

    Python runs a handler in the main thread, and only when that thread does something. The system
    may deliver the signal to any other thread, as it does after a freeze (SIGSTOP, SIGCONT), and a
    main thread that sleeps then sleeps on. So once the service runs, a thread of its own reads the
    signals from a pipe, into which Python writes the number of each wherever it was delivered.
    """

    def __init__(self) -> None:
        """Take the signals over. Only in the main thread."""
        self._serving = False
        self._names: SimpleQueue[str] = SimpleQueue()
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def end_start(self) -> None:
        """From now on a signal asks for a graceful stop."""
        self._serving = True
        threading.Thread(target=self._watch, name="stop-signal", daemon=True).start()

    def wait(self) -> str:
        """Wait for the first signal and return its name."""
        return self._names.get()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._serving:
            raise SystemExit(0)

    def _watch(self) -> None:
        self._names.put(signal.Signals(os.read(self._read_end, 1)[0]).name)
        number = os.read(self._read_end, 1)[0]
        os._exit(128 + number)  # whoever asks twice does not want to wait
