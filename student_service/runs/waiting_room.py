"""Where mutations wait for their turn."""

import math
import threading


class WaitingRoom:
    """Bounds the mutations of a service that wait for their turn, and what they hold meanwhile.

    Each of them keeps a thread, a request slot and its message. Without bounds they could take all
    of it, and the request that they wait for would find none.
    """

    def __init__(self, *, places: int, byte_limit: float = math.inf) -> None:
        """Args:
        places: most mutations that wait.
        byte_limit: most bytes that they hold together.
        """
        self._places = places
        self._byte_limit = byte_limit
        self._lock = threading.Lock()
        self._waiting = 0
        self._held = 0

    def enter(self, byte_count: int) -> bool:
        """Take a place for a mutation that holds so many bytes; False where there is none."""
        with self._lock:
            if self._waiting >= self._places or self._held + byte_count > self._byte_limit:
                return False
            self._waiting += 1
            self._held += byte_count
            return True

    def leave(self, byte_count: int) -> None:
        """Give the place back."""
        with self._lock:
            self._waiting -= 1
            self._held -= byte_count
