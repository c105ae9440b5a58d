"""The bytes that requests in progress hold: one budget of a service, one account for each call."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from distill.errors import CallEndedError, HeldBytesError, LimitExceededError


class ByteBudget:
    """How many bytes all requests in progress may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Most bytes at a time."""
        self._lock = threading.Lock()
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        with self._lock:
            return self._held

    def take(self, byte_count: int) -> None:
        """Hold so many bytes more.

        Raises:
            HeldBytesError: they would be more than the limit; nothing was taken.
        """
        with self._lock:
            value = self._held + byte_count
            if value > self.limit:
                raise HeldBytesError(self.limit, value)
            self._held = value

    def give_back(self, byte_count: int) -> None:
        """Hold so many bytes less."""
        with self._lock:
            self._held -= byte_count


class HeldMemory:
    """What one call holds of a budget. Not for several threads at a time."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._has_ended = False
        self.byte_count = 0
        """Bytes that the call holds now."""

    def add(self, byte_count: int) -> None:
        """Hold so many bytes more until the call ends.

        Raises:
            HeldBytesError: the requests in progress would hold too much together.
            LimitExceededError: this one would alone, so that it never fits.
            CallEndedError: the call has ended, and nobody would give the bytes back.
        """
        if self._has_ended:
            raise CallEndedError("the call ended before all that it asked for had arrived")
        value = self.byte_count + byte_count
        if value > self._budget.limit:
            raise LimitExceededError("request", self._budget.limit, value, unit="bytes held")
        self._budget.take(byte_count)
        self.byte_count = value

    def release(self) -> None:
        """Give everything back; the call has ended."""
        self._has_ended = True
        self._budget.give_back(self.byte_count)
        self.byte_count = 0


# By identity, because the contexts of tests need not be hashable. An entry lives as long as its
# call, so no other context has the number meanwhile.
_MEMORY_OF: dict[int, HeldMemory] = {}


@contextmanager
def memory_of_call(context: grpc.ServicerContext, budget: ByteBudget) -> Iterator[HeldMemory]:
    """An account for a call, which `held_memory` finds until the block ends, however it ends."""
    memory = HeldMemory(budget)
    _MEMORY_OF[id(context)] = memory
    try:
        yield memory
    finally:
        del _MEMORY_OF[id(context)]
        memory.release()


def held_memory(context: grpc.ServicerContext) -> HeldMemory:
    """The account of a call in progress, to add what is fetched for it.

    Raises:
        LookupError: the call does not come through a `RequestGuard`, or has ended.
    """
    return _MEMORY_OF[id(context)]
