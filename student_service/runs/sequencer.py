"""Decides what happens to a mutation: run it, wait, answer it again, or refuse it.

One sequencer per run. The table it implements is in docs/exactly-once.md.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from distill.errors import (
    AlreadyAppliedError,
    BusyError,
    CallEndedError,
    DeadlineError,
    RunDeletedError,
    SequenceReusedError,
    TooFarAheadError,
    WriterFencedError,
)

Answer = TypeVar("Answer")

IN_FLIGHT_LIMIT = 64
"""Requests of a run that may be on their way at once: so far ahead of the last applied number may
one be, and so many answers are kept for repetition."""

ANSWER_BYTES = 16 << 20
"""Bound on the kept answers of a run, the latest not counted. Enough for 64 answers
without log-probs and row losses, which can make a single one as large as a message may be."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What identifies a mutation."""

    writer_epoch: int
    """Epoch the writer was given."""

    sequence_number: int
    """Position in the run's sequence, from 1."""

    digest: bytes
    """Digest of the operation and its payload; tells a repetition from a conflict."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    digest: bytes
    answer: object
    byte_count: int


class Sequencer:
    """Applies mutations exactly once and in order, whatever order they arrive in."""

    def __init__(
        self,
        *,
        last: int = 0,
        epoch: int = 1,
        in_flight_limit: int = IN_FLIGHT_LIMIT,
        waiting_slots: threading.Semaphore | None = None,
        measure: Callable[[Any], int] = lambda _: 0,
        answer_bytes: int = ANSWER_BYTES,
    ) -> None:
        """Args:
        last: the last applied sequence number.
        epoch: of the first writer.
        in_flight_limit: how far ahead a request may be, and answers kept.
        waiting_slots: bounds the requests that wait for their turn; the sequencers of a service
            share one. None: as many as may be in flight.
        measure: bytes of an answer.
        answer_bytes: bound on the answers that are kept, the latest not counted.
        """
        self._changed = threading.Condition()
        self._in_flight_limit = in_flight_limit
        self._waiting_slots = waiting_slots or threading.Semaphore(in_flight_limit)
        self._last = last
        self._epoch = epoch
        self._in_flight: bytes | None = None
        self._closed = False
        self._measure = measure
        self._answer_bytes = answer_bytes
        self._answers: OrderedDict[int, _Kept] = OrderedDict()

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

    def take_over(
        self,
        *,
        timeout_seconds: float | None = None,
        is_active: Callable[[], bool] = lambda: True,
    ) -> int:
        """Fence the current writer and return the new epoch, once nothing is in flight.

        The epoch stays as it was when this raises.

        Raises:
            DeadlineError: what is in flight did not end in time.
            CallEndedError: the caller left before that.
            RunDeletedError: the run was deleted before that.
        """
        with self._changed:
            ended = self._changed.wait_for(
                lambda: self._in_flight is None or not is_active(), timeout_seconds
            )
            if not is_active():
                raise CallEndedError("the call ended before it could take the run over")
            if not ended:
                raise DeadlineError("a mutation is still in flight")
            if self._closed:
                raise RunDeletedError("run_id: the run was deleted")
            self._epoch += 1
            self._changed.notify_all()
            return self._epoch

    def close(self) -> None:
        """Refuse every new mutation from now on, because the run was deleted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Make every request that waits for its turn look whether its caller is still there."""
        with self._changed:
            self._changed.notify_all()

    def repeated(self, ticket: Ticket) -> object | None:
        """The kept answer of a mutation that was applied before, or None.

        Lets a servicer skip costly preparation. Raises what `execute` would.
        """
        with self._changed:
            return self._find_answer(ticket)

    def execute(
        self,
        ticket: Ticket,
        operation: Callable[[], Answer],
        *,
        timeout_seconds: float | None,
        is_active: Callable[[], bool] = lambda: True,
    ) -> tuple[Answer, bool]:
        """Run `operation` in its turn, or return the kept answer.

        `operation` must change nothing when it raises: then its number is not consumed.

        Args:
            ticket: what identifies the mutation.
            operation: the mutation.
            timeout_seconds: longest wait for its turn. None: no limit.
            is_active: whether the caller is still there; asked again after every `wake`.

        Returns:
            The answer, and whether it repeats one given before.

        Raises:
            WriterFencedError: another epoch than the current one.
            SequenceReusedError: the number was used, or is in flight, with other content.
            RunDeletedError: the run was deleted.
            AlreadyAppliedError: applied so long ago that the answer is gone.
            TooFarAheadError: further ahead than the limit.
            BusyError: too many requests wait for their turn already.
            CallEndedError: the caller left before its turn.
            DeadlineError: the predecessors did not arrive in time.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            if not self._is_settled(ticket, is_active):
                self._wait_until_settled(ticket, is_active, deadline)
            known = self._find_answer(ticket)
            if known is not None:
                return known, True  # type: ignore[return-value] # same digest, same operation
            self._in_flight = ticket.digest
        try:
            answer = operation()
        except BaseException:
            self._finish(ticket, None)
            raise
        self._finish(ticket, answer)
        return answer, False

    def _is_settled(self, ticket: Ticket, is_active: Callable[[], bool]) -> bool:
        """Whether there is an answer, or it is the ticket's turn. Raises what `execute` would."""
        if self._find_answer(ticket) is not None:
            return True
        if not is_active():
            raise CallEndedError(
                f"mutation.sequence_number: the call ended before {ticket.sequence_number} had "
                "its turn"
            )
        is_next = ticket.sequence_number == self._last + 1
        if is_next and self._in_flight not in (None, ticket.digest):
            raise SequenceReusedError(
                f"mutation.sequence_number: {ticket.sequence_number} is in flight with other "
                "content"
            )
        return is_next and self._in_flight is None

    def _wait_until_settled(
        self, ticket: Ticket, is_active: Callable[[], bool], deadline: float | None
    ) -> None:
        # Each waiting request holds a thread and a request slot. Without a bound they could take
        # all slots, and the request that they wait for would find none.
        if not self._waiting_slots.acquire(blocking=False):
            raise BusyError(
                f"mutation.sequence_number: {ticket.sequence_number} would have to wait for "
                f"{self._last + 1}, and too many requests wait already"
            )
        try:
            while not self._is_settled(ticket, is_active):
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise DeadlineError(
                        f"mutation.sequence_number: {ticket.sequence_number} still waits for "
                        f"{self._last + 1}"
                    )
                self._changed.wait(remaining)
        finally:
            self._waiting_slots.release()

    def _find_answer(self, ticket: Ticket) -> object | None:
        number = ticket.sequence_number
        if ticket.writer_epoch != self._epoch:
            raise WriterFencedError(
                "mutation.writer_epoch", current=self._epoch, got=ticket.writer_epoch
            )
        if self._closed and number > self._last and self._in_flight != ticket.digest:
            raise RunDeletedError("mutation.run_id: the run was deleted")
        if number > self._last + self._in_flight_limit:
            raise TooFarAheadError(
                f"mutation.sequence_number: must be at most {self._last + self._in_flight_limit} "
                f"(the last applied is {self._last}), got {number}"
            )
        if number > self._last:
            return None
        if number not in self._answers:
            raise AlreadyAppliedError(
                f"mutation.sequence_number: {number} was already applied and its answer is no "
                f"longer kept (the last applied is {self._last})"
            )
        kept = self._answers[number]
        if kept.digest != ticket.digest:
            raise SequenceReusedError(
                f"mutation.sequence_number: {number} was already used for other content"
            )
        return kept.answer

    def _finish(self, ticket: Ticket, answer: object | None) -> None:
        with self._changed:
            self._in_flight = None
            if answer is not None:
                self._last = ticket.sequence_number
                self._forget_answers()
                self._answers[ticket.sequence_number] = _Kept(
                    digest=ticket.digest, answer=answer, byte_count=self._measure(answer)
                )
            self._changed.notify_all()

    def _forget_answers(self) -> None:
        """Forget the oldest answers until both their count and their bytes leave room for one."""
        total = sum(kept.byte_count for kept in self._answers.values())
        while len(self._answers) >= self._in_flight_limit or total > self._answer_bytes:
            total -= self._answers.popitem(last=False)[1].byte_count
