"""The memory that all sampling jobs together may take for their key-value caches."""

import threading
from collections import deque


class CacheLease:
    """A job's part of the budget, once it is granted."""

    def __init__(self, budget: "CacheBudget", byte_count: int) -> None:
        self._budget = budget
        self.byte_count = byte_count
        self.is_granted = False

    def release(self) -> None:
        """Give the part back, or stop waiting for it."""
        self._budget._release(self)


class CacheBudget:
    """Grants leases in the order they are asked for, as long as their sum fits.

    A lease is for the most that a job will ever need. If jobs could ask for more later, two of them
    might wait for each other.
    """

    def __init__(self, byte_budget: int) -> None:
        self._byte_budget = byte_budget
        self._held_bytes = 0
        self._waiting: deque[CacheLease] = deque()
        # Reentrant: the garbage collector may close a job, which releases, at any moment.
        self._lock = threading.RLock()

    def ask(self, byte_count: int) -> CacheLease:
        """A lease that is granted at once or later.

        One that is larger than the budget is granted when no other holds memory.
        """
        lease = CacheLease(self, byte_count)
        with self._lock:
            self._waiting.append(lease)
            self._grant()
        return lease

    def _release(self, lease: CacheLease) -> None:
        with self._lock:
            if lease.is_granted:
                self._held_bytes -= lease.byte_count
                lease.is_granted = False
            elif lease in self._waiting:
                self._waiting.remove(lease)
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            first = self._waiting[0]
            if self._held_bytes and self._held_bytes + first.byte_count > self._byte_budget:
                return
            self._waiting.popleft()
            self._held_bytes += first.byte_count
            first.is_granted = True
