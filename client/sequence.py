"""The sequence numbers of one run's writer: who has which, and what is certain about it."""

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from client.errors import AnotherWriterError, ServiceError, UncertainMutationError
from distill.v1 import student_service_pb2 as messages
from distill.v1 import training_pb2

NAP_SECONDS = 0.2
"""How long a thread sleeps at most before it looks again. A signal that comes just before a sleep
does not interrupt it, so Ctrl-C would have no effect until the end of a long one."""


class Ticket:
    """A mutation that has, or will have, a place in the sequence."""

    def __init__(self, operation: str) -> None:
        """Args:
        operation: its name, for errors.
        """
        self.operation = operation
        self.header = training_pb2.Mutation()
        """What it is sent with; filled when it gets its number."""


AnyTicket = TypeVar("AnyTicket", bound=Ticket)


@dataclass(frozen=True, kw_only=True)
class TakeOver:
    """How the run is taken over from this very writer."""

    attach_id: str
    """Name of the attempt, the same until it is answered."""

    writer_epoch: int
    """The epoch of this writer."""


class Turn(Enum):
    """What became of a mutation that wants a number."""

    GIVEN = auto()
    """It has one."""

    TAKE_OVER_FIRST = auto()
    """The run must be taken over before; nothing is in flight."""

    BEHIND_A_REFUSED_ONE = auto()
    """One before it was refused, of which nobody has heard yet: whoever calls may count on it."""


class MutationSequence(Generic[AnyTicket]):
    """Gives every mutation its number, in the order of the calls, and notes how it ends.

    A mutation that was refused leaves its number to the next one. Those behind it can never have
    their turn, but copies of them may still be on their way: before a number is given again, the
    run is taken over, which fences them. A mutation that comes before anybody has heard of the
    refusal is behind it as well: a step must not go without its batch because it came later.

    After a mutation that ended without an answer nobody here knows which numbers are used: then no
    further one is given until a take-over has settled it.

    Sends nothing, and may be used from many threads. Each change is one assignment, or is safe to
    repeat, because Ctrl-C may interrupt it anywhere.
    """

    def __init__(self, *, run_id: str, writer_epoch: int, last_sequence_number: int) -> None:
        self._run_id = run_id
        self._writer_epoch = writer_epoch
        self._last = last_sequence_number
        self._in_flight: dict[int, AnyTicket] = {}
        self._uncertain: list[AnyTicket] = []
        self._unobserved: list[AnyTicket] = []
        self._attach_id: str | None = None
        self._changed = threading.Condition()

    @property
    def is_busy(self) -> bool:
        """Whether a mutation is in flight."""
        return bool(self._in_flight)

    @property
    def unobserved(self) -> AnyTicket | None:
        """The first refused mutation of which nobody has heard."""
        with self._changed:
            return self._unobserved[0] if self._unobserved else None

    def give(self, ticket: AnyTicket, *, most_in_flight: int, timeout_seconds: float) -> Turn:
        """Give the next number, once few enough mutations are in flight.

        Raises:
            AnotherWriterError: this handle is not the run's writer.
            UncertainMutationError: an earlier mutation ended without an answer.
            ServiceError: DEADLINE_EXCEEDED; those in flight did not end in time.
        """
        with self._changed:
            self._check_writer()
            self._wait(
                lambda: bool(self._uncertain or self._unobserved) or self._has_room(most_in_flight),
                timeout_seconds,
            )
            if self._uncertain:
                raise UncertainMutationError(
                    f"{self._uncertain[0].operation} ended without an answer and may have been "
                    "applied; call resynchronize() to find out"
                )
            if self._unobserved:
                return Turn.BEHIND_A_REFUSED_ONE
            if self._attach_id is not None:
                return Turn.TAKE_OVER_FIRST
            number = max([self._last, *self._in_flight]) + 1
            ticket.header.run_id = self._run_id
            ticket.header.writer_epoch = self._writer_epoch
            ticket.header.sequence_number = number
            self._in_flight[number] = ticket
            return Turn.GIVEN

    def applied(self, ticket: AnyTicket) -> bool:
        """A mutation was answered. False: it had ended before for those who wait for it."""
        with self._changed:
            number = ticket.header.sequence_number
            if self._in_flight.get(number) is not ticket:
                return False
            # Answers may overtake each other. Whatever is before an applied number was applied too.
            self._last = max(self._last, number)
            del self._in_flight[number]
            self._changed.notify_all()
            return True

    def refused(self, ticket: AnyTicket) -> list[AnyTicket]:
        """A mutation was certainly not applied.

        Returns:
            What has ended with it: the mutation itself, then those behind it, none of which can
            have been applied. Nothing, where it had ended before.
        """
        with self._changed:
            ended = self._ended_by(ticket)
            if len(ended) > 1:
                self._attach_id = self._attach_id or uuid.uuid4().hex
            self._unobserved = self._unobserved + ended[:1]
            self._remove(ended)
            return ended

    def observed(self, ticket: AnyTicket) -> None:
        """Somebody has heard that this mutation was refused."""
        with self._changed:
            self._unobserved = [one for one in self._unobserved if one is not ticket]

    def lost(self, ticket: AnyTicket) -> list[AnyTicket]:
        """A mutation ended without an answer.

        Returns:
            What is uncertain now: the mutation itself, then those behind it. Nothing, where it had
            ended before.
        """
        with self._changed:
            ended = self._ended_by(ticket)
            self._uncertain = self._uncertain + ended
            self._remove(ended)
            return ended

    def begin_take_over(self, timeout_seconds: float) -> TakeOver:
        """Wait until nothing is in flight, then say how to take the run over.

        Raises:
            AnotherWriterError: this handle is not the run's writer.
            ServiceError: DEADLINE_EXCEEDED; those in flight did not end in time.
        """
        with self._changed:
            self._check_writer()
            self._wait(lambda: not self._in_flight, timeout_seconds)
            # Kept until it is answered: the epoch may have been raised though the answer is lost.
            # A repetition then gets that epoch, and takes the run from nobody else.
            self._attach_id = self._attach_id or uuid.uuid4().hex
            return TakeOver(attach_id=self._attach_id, writer_epoch=self._writer_epoch)

    def end_take_over(self, response: messages.CreateRunResponse) -> int:
        """Go on with the new epoch.

        Whatever of the uncertain mutations was still under way is over: done and counted, or fenced
        and never to be applied.

        Returns:
            How many of the uncertain mutations were applied.

        Raises:
            ServiceError: ABORTED (WRITER_FENCED); another writer has taken over since.
        """
        with self._changed:
            if response.writer_epoch != response.run.writer_epoch:
                raise ServiceError(
                    code="ABORTED",
                    message=f"run {self._run_id!r}: another writer took over",
                    reason="WRITER_FENCED",
                )
            last = response.run.last_sequence_number
            applied_count = sum(one.header.sequence_number <= last for one in self._uncertain)
            self._last, self._writer_epoch = last, response.writer_epoch
            self._uncertain = []
            self._attach_id = None  # at the end: up to here the take-over can be repeated
            self._changed.notify_all()
            return applied_count

    def _check_writer(self) -> None:
        if not self._writer_epoch:
            raise AnotherWriterError(
                f"run {self._run_id!r} has another writer: create_run(..., take_over=True) makes a "
                "handle its writer, and the other one is refused from then on"
            )

    def _has_room(self, most_in_flight: int) -> bool:
        # Those before a refused one are still carried out, and a take-over would fence them.
        most = most_in_flight if self._attach_id is None else 1
        return len(self._in_flight) < most

    def _wait(self, is_over: Callable[[], bool], timeout_seconds: float) -> None:
        end = time.monotonic() + timeout_seconds
        while not self._changed.wait_for(is_over, min(NAP_SECONDS, end - time.monotonic())):
            if time.monotonic() < end:
                continue
            raise ServiceError(
                code="DEADLINE_EXCEEDED",
                message=f"not sent: {len(self._in_flight)} earlier calls of this handle did not "
                "end in time",
            )

    def _ended_by(self, ticket: AnyTicket) -> list[AnyTicket]:
        """The mutation and those behind it, where it is in flight."""
        number = ticket.header.sequence_number
        if self._in_flight.get(number) is not ticket:
            return []
        return [self._in_flight[each] for each in sorted(self._in_flight) if each >= number]

    def _remove(self, ended: list[AnyTicket]) -> None:
        numbers = {one.header.sequence_number for one in ended}
        self._in_flight = {
            number: one for number, one in self._in_flight.items() if number not in numbers
        }
        self._changed.notify_all()
