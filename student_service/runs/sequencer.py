"""Owns the state of a run and decides what happens to a mutation: run it, wait, answer it again, or
refuse it.

One sequencer per run. The table it implements is in docs/exactly-once.md. A mutation is a function
from the state to a proposed state and an answer. Both are committed together, with the sequence
number and the digest, under one lock: a mutation that fails before has changed nothing, and no
reader sees the state of one number beside another number.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from distill.errors import (
    BusyError,
    CallEndedError,
    DeadlineError,
    RunDeletedError,
    SequenceReusedError,
    TooFarAheadError,
    WriterFencedError,
)
from student_service.runs.kept_answers import ANSWER_BYTES, KeptAnswer, KeptAnswers, Ticket
from student_service.runs.waiting_room import WaitingRoom

StateT = TypeVar("StateT")
AnswerT = TypeVar("AnswerT")

IN_FLIGHT_LIMIT = 64
"""Requests of a run that may be on their way at once: so far ahead of the last applied number may
one be, and so many answers are kept for repetition."""

KEPT_ATTACHMENTS = 64
"""Attempts to create or to take over a run that can be repeated."""

Operation: TypeAlias = Callable[[StateT], tuple[StateT, AnswerT]]
"""A mutation: the proposed state, and the answer. It must not edit the state that it is given."""


@dataclass(frozen=True, kw_only=True)
class Committed(Generic[StateT]):
    """A state with the number of the mutation that made it, and the writer's epoch, all of one
    moment."""

    state: StateT
    """The state."""

    sequence_number: int
    """The last applied number; 0 for a new run."""

    writer_epoch: int
    """Epoch of the current writer."""


class Sequencer(Generic[StateT]):
    """Applies mutations exactly once and in order, whatever order they arrive in."""

    def __init__(
        self,
        state: StateT,
        *,
        epoch: int = 1,
        attach_id: str = "",
        in_flight_limit: int = IN_FLIGHT_LIMIT,
        waiting_room: WaitingRoom | None = None,
        measure: Callable[[Any], int] = lambda _: 0,
        answer_bytes: int = ANSWER_BYTES,
    ) -> None:
        """Args:
        state: the first one.
        epoch: of the first writer.
        attach_id: the first writer's name for its attempt to create the run; empty: it has none.
        in_flight_limit: how far ahead a request may be, and answers kept.
        waiting_room: bounds the requests that wait for their turn; the sequencers of a service
            share one. None: as many as may be in flight.
        measure: bytes of an answer.
        answer_bytes: bound on the answers that are kept, the latest not counted.
        """
        self._changed = threading.Condition()
        self._in_flight_limit = in_flight_limit
        self._waiting_room = waiting_room or WaitingRoom(places=in_flight_limit)
        self._committed = Committed(state=state, sequence_number=0, writer_epoch=epoch)
        self._in_flight: bytes | None = None
        self._closed = False
        self._answers = KeptAnswers(count=in_flight_limit, byte_limit=answer_bytes, measure=measure)
        self._attachments: OrderedDict[str, int] = OrderedDict()
        self._note_writer(attach_id)

    @property
    def committed(self) -> Committed[StateT]:
        """The present state with its number and epoch."""
        with self._changed:
            return self._committed

    def attach(self, attach_id: str) -> tuple[int, Committed[StateT]]:
        """The epoch that an earlier attempt of this name gave, and the run at this moment.

        0 for any other attempt: the run has a writer, and two that know nothing of each other would
        take each other's answers for their own. Where the writer has no name, nothing tells it from
        others without one: they share its epoch.
        """
        with self._changed:
            if not attach_id and not self._writer:
                return self._committed.writer_epoch, self._committed
            return self._attachments.get(attach_id, 0), self._committed

    def take_over(
        self,
        *,
        expected_epoch: int | None = None,
        attach_id: str = "",
        timeout_seconds: float | None = None,
        is_active: Callable[[], bool] = lambda: True,
    ) -> tuple[int, Committed[StateT]]:
        """Fence the current writer, once nothing is in flight.

        Args:
            expected_epoch: of the writer that is to be fenced. None: whoever it is.
            attach_id: names the attempt. One that succeeded before gives its epoch again and
                fences nobody. Empty: every attempt is a new one.
            timeout_seconds: longest wait for what is in flight. None: no limit.
            is_active: whether the caller is still there; asked again after every `wake`.

        Returns:
            The epoch of this attempt, and the run at this moment.

        Raises, with the epoch as it was:
            WriterFencedError: another epoch than the expected one is current.
            DeadlineError: what is in flight did not end in time.
            CallEndedError: the caller left before that.
            RunDeletedError: the run was deleted before that.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                if (earlier := self._attachments.get(attach_id)) is not None:
                    return earlier, self._committed
                if not is_active():
                    raise CallEndedError("the call ended before it could take the run over")
                if self._closed:
                    raise RunDeletedError("run_id: the run was deleted")
                current = self._committed.writer_epoch
                if expected_epoch not in (None, current):
                    raise WriterFencedError(
                        "expected_writer_epoch", current=current, got=expected_epoch
                    )
                if self._in_flight is None:
                    break
                remaining = _remaining(deadline)
                if remaining is not None and remaining <= 0:
                    raise DeadlineError("a mutation is still in flight")
                self._changed.wait(remaining)
            self._committed = Committed(
                state=self._committed.state,
                sequence_number=self._committed.sequence_number,
                writer_epoch=current + 1,
            )
            self._note_writer(attach_id)
            self._changed.notify_all()
            return current + 1, self._committed

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
        operation: Operation[StateT, AnswerT],
        *,
        timeout_seconds: float | None,
        is_active: Callable[[], bool] = lambda: True,
        held_bytes: int = 0,
    ) -> tuple[AnswerT, bool]:
        """Run `operation` in its turn and commit what it returns, or return the kept answer.

        When it raises, nothing has changed and its number is not consumed.

        Args:
            ticket: what identifies the mutation.
            operation: the mutation.
            timeout_seconds: longest wait for its turn. None: no limit.
            is_active: whether the caller is still there; asked again after every `wake`.
            held_bytes: memory that the request keeps while it waits.

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
                self._wait_until_settled(ticket, is_active, deadline, held_bytes)
            known = self._find_answer(ticket)
            if known is not None:
                return known, True  # type: ignore[return-value] # same digest, same operation
            self._in_flight = ticket.digest
            state = self._committed.state
        try:
            proposed, answer = operation(state)
            kept = self._answers.measured(ticket, answer)
        except BaseException:
            with self._changed:
                self._in_flight = None
                self._changed.notify_all()
            raise
        self._commit(ticket, proposed, kept)
        return answer, False

    def _commit(self, ticket: Ticket, state: StateT, kept: KeptAnswer) -> None:
        with self._changed:
            self._committed = Committed(
                state=state,
                sequence_number=ticket.sequence_number,
                writer_epoch=self._committed.writer_epoch,
            )
            self._answers.keep(ticket.sequence_number, kept)
            self._in_flight = None
            self._changed.notify_all()

    def _is_settled(self, ticket: Ticket, is_active: Callable[[], bool]) -> bool:
        """Whether there is an answer, or it is the ticket's turn. Raises what `execute` would."""
        if self._find_answer(ticket) is not None:
            return True
        if not is_active():
            raise CallEndedError(
                f"sequence_number: the call ended before {ticket.sequence_number} had its turn"
            )
        is_next = ticket.sequence_number == self._last + 1
        if is_next and self._in_flight not in (None, ticket.digest):
            raise SequenceReusedError(
                f"sequence_number: {ticket.sequence_number} is in flight with other content"
            )
        return is_next and self._in_flight is None

    def _wait_until_settled(
        self,
        ticket: Ticket,
        is_active: Callable[[], bool],
        deadline: float | None,
        held_bytes: int,
    ) -> None:
        if not self._waiting_room.enter(held_bytes):
            raise BusyError(
                f"sequence_number: {ticket.sequence_number} would have to wait for "
                f"{self._last + 1}, and too many requests, or too large ones, wait already"
            )
        try:
            while not self._is_settled(ticket, is_active):
                remaining = _remaining(deadline)
                if remaining is not None and remaining <= 0:
                    raise DeadlineError(
                        f"sequence_number: {ticket.sequence_number} still waits for "
                        f"{self._last + 1}"
                    )
                self._changed.wait(remaining)
        finally:
            self._waiting_room.leave(held_bytes)

    @property
    def _last(self) -> int:
        return self._committed.sequence_number

    def _find_answer(self, ticket: Ticket) -> object | None:
        number = ticket.sequence_number
        current = self._committed.writer_epoch
        if ticket.writer_epoch != current:
            raise WriterFencedError("writer_epoch", current=current, got=ticket.writer_epoch)
        if self._closed and number > self._last and self._in_flight != ticket.digest:
            raise RunDeletedError("run_id: the run was deleted")
        if number > self._last + self._in_flight_limit:
            raise TooFarAheadError(
                f"sequence_number: must be at most {self._last + self._in_flight_limit} "
                f"(the last applied is {self._last}), got {number}"
            )
        if number > self._last:
            return None
        return self._answers.find(ticket, last=self._last)

    def _note_writer(self, attach_id: str) -> None:
        self._writer = attach_id
        if not attach_id:
            return
        self._attachments[attach_id] = self._committed.writer_epoch
        while len(self._attachments) > KEPT_ATTACHMENTS:
            self._attachments.popitem(last=False)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()
