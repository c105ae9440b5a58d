"""Decides what happens to a mutation: run it, wait, answer it again, or refuse it.

One sequencer per run. The table it implements is in docs/exactly-once.md.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from distill.errors import (
    AlreadyAppliedError,
    DeadlineError,
    SequenceConflictError,
    WrongStateError,
)

Answer = TypeVar("Answer")

WINDOW = 64
"""Answers kept for repetition, and how far ahead of the last applied number a request may be."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What identifies a mutation."""

    writer_epoch: int
    """Epoch the writer was given."""

    sequence_number: int
    """Position in the run's sequence, from 1."""

    digest: bytes
    """Digest of the operation and its payload; tells a repetition from a conflict."""


class Sequencer:
    """Applies mutations exactly once and in order, whatever order they arrive in."""

    def __init__(self, *, last: int = 0, window: int = WINDOW) -> None:
        self._changed = threading.Condition()
        self._window = window
        self._last = last
        self._epoch = 1
        self._in_flight: bytes | None = None
        self._closed = False
        self._answers: OrderedDict[int, tuple[bytes, object]] = OrderedDict()

    @property
    def last(self) -> int:
        """The last applied sequence number."""
        with self._changed:
            return self._last

    @property
    def epoch(self) -> int:
        """The epoch of the current writer."""
        with self._changed:
            return self._epoch

    def take_over(self) -> int:
        """Fence the current writer and return the new epoch, once nothing is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight is None)
            self._epoch += 1
            self._changed.notify_all()
            return self._epoch

    def close(self) -> None:
        """Refuse everything from now on; the run was deleted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def repeated(self, ticket: Ticket) -> object | None:
        """The kept answer of a mutation that was applied before, or None.

        Lets a servicer skip costly preparation. Raises what `execute` would.
        """
        with self._changed:
            return self._find_answer(ticket)

    def execute(
        self, ticket: Ticket, operation: Callable[[], Answer], *, timeout_seconds: float | None
    ) -> tuple[Answer, bool]:
        """Run `operation` in its turn, or return the kept answer.

        `operation` must change nothing when it raises: then its number is not consumed.

        Returns:
            The answer, and whether it repeats one given before.

        Raises:
            SequenceConflictError: fenced epoch, or the number was used for something else.
            AlreadyAppliedError: applied so long ago that the answer is gone.
            WrongStateError: further ahead than the window.
            DeadlineError: the predecessors did not arrive in time.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                known = self._find_answer(ticket)
                if known is not None:
                    return known, True  # type: ignore[return-value] # same digest, same operation
                is_next = ticket.sequence_number == self._last + 1
                if is_next and self._in_flight is None:
                    break
                if is_next and self._in_flight != ticket.digest:
                    raise SequenceConflictError(
                        f"mutation.sequence_number: {ticket.sequence_number} is in flight with "
                        "other content"
                    )
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise DeadlineError(
                        f"mutation.sequence_number: {ticket.sequence_number} still waits for "
                        f"{self._last + 1}"
                    )
                self._changed.wait(remaining)
            self._in_flight = ticket.digest
        try:
            answer = operation()
        except BaseException:
            self._finish(ticket, None)
            raise
        self._finish(ticket, answer)
        return answer, False

    def _find_answer(self, ticket: Ticket) -> object | None:
        number = ticket.sequence_number
        if self._closed:
            raise SequenceConflictError("mutation.run_id: the run was deleted")
        if ticket.writer_epoch != self._epoch:
            raise SequenceConflictError(
                f"mutation.writer_epoch: the current epoch is {self._epoch}, got "
                f"{ticket.writer_epoch}: another writer took over"
            )
        if number > self._last + self._window:
            raise WrongStateError(
                f"mutation.sequence_number: must be at most {self._last + self._window} "
                f"(the last applied is {self._last}), got {number}"
            )
        if number > self._last:
            return None
        if number not in self._answers:
            raise AlreadyAppliedError(
                f"mutation.sequence_number: {number} was already applied and its answer is no "
                f"longer kept (the last applied is {self._last})"
            )
        digest, answer = self._answers[number]
        if digest != ticket.digest:
            raise SequenceConflictError(
                f"mutation.sequence_number: {number} was already used for other content"
            )
        return answer

    def _finish(self, ticket: Ticket, answer: object | None) -> None:
        with self._changed:
            self._in_flight = None
            if answer is not None:
                self._last = ticket.sequence_number
                self._answers[ticket.sequence_number] = (ticket.digest, answer)
                while len(self._answers) > self._window:
                    self._answers.popitem(last=False)
            self._changed.notify_all()
