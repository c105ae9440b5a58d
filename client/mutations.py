"""Sends the mutations of a run: several may be on their way, and they apply in the order given."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from client.certainty import changed_nothing
from client.connection import Connection, Deadline
from client.errors import PredecessorFailedError, ServiceError, UncertainMutationError
from client.mutation_call import MutationCall
from client.results import Run
from client.sequence import NAP_SECONDS, MutationSequence, Turn
from distill.v1 import student_service_pb2 as messages
from distill.v1 import student_service_pb2_grpc
from distill.v1.training_pb2 import RunConfig

Answer = TypeVar("Answer")

MOST_IN_FLIGHT = 8
"""Mutations of a handle that are on their way at most. A few hide the way to the service; each one
that waits there for its turn holds a request slot."""


class Mutations:
    """The mutations of one handle of a run."""

    def __init__(
        self,
        connection: Connection,
        stub: student_service_pb2_grpc.StudentServiceStub,
        created: Run,
        writer_epoch: int,
    ) -> None:
        """Args:
        connection: to the service.
        stub: of the service.
        created: the run as it was when this handle was attached to it.
        writer_epoch: the handle's.
        """
        self._connection = connection
        self._stub = stub
        self._run_id = created.run_id
        self._config = RunConfig()  # a copy: `created` is the caller's to look at, and to change
        self._config.CopyFrom(created.config)
        self._sequence: MutationSequence[MutationCall[Any]] = MutationSequence(
            run_id=created.run_id,
            writer_epoch=writer_epoch,
            last_sequence_number=created.last_sequence_number,
        )
        self._turn = threading.Lock()  # of those who want a number
        self._most_in_flight: int | None = None

    def submit(self, call: MutationCall[Answer]) -> Future[Answer]:
        """Give a call its number and send it; waits while too many are in flight.

        Raises:
            AnotherWriterError: the handle is not the run's writer.
            UncertainMutationError: an earlier mutation ended without an answer.
            ServiceError: DEADLINE_EXCEEDED; those in flight did not end in time. Or the take-over
                failed that has to come before this call. The call was not sent.
        """
        try:
            with self._turn_within(call.deadline):
                most = self._limit(call.deadline) if self._sequence.is_busy else 1
                while (turn := self._turn_of(call, most)) is not Turn.GIVEN:
                    if turn is Turn.TAKE_OVER_FIRST:
                        self._take_over(call.deadline)
                    elif (refused := self._sequence.unobserved) is not None:
                        self._fail_behind(refused, call)
                        return call.future
                # A thread for each call, of those few that are in flight: a daemon, so that the
                # interpreter waits for none of them when it exits.
                threading.Thread(
                    target=self._send, args=(call,), name=call.operation, daemon=True
                ).start()
        except BaseException:
            self._lose(call)
            raise
        return call.future

    def wait(self, call: MutationCall[Answer]) -> Answer:
        """Send a call and wait for its answer.

        Raises:
            ServiceError, PredecessorFailedError, UncertainMutationError: as in `StudentRun`.
        """
        try:
            return self.submit(call).result()
        except BaseException:
            # Ctrl-C, or SIGTERM as `distill` has it, leaves the call without an answer. Any other
            # error is that of the call, which has ended then.
            self._lose(call)
            raise

    def resynchronize(self, deadline: Deadline) -> int:
        """Settle what is uncertain; args and result as in `StudentRun.resynchronize`."""
        with self._turn_within(deadline):
            return self._take_over(deadline)

    @contextmanager
    def _turn_within(self, deadline: Deadline) -> Iterator[None]:
        """The turn to get a number, waited for in naps that Ctrl-C interrupts.

        Raises:
            ServiceError: DEADLINE_EXCEEDED; others had the turn until then. Nothing was sent.
        """
        while not self._turn.acquire(timeout=NAP_SECONDS):
            if not deadline.remaining_seconds:
                raise ServiceError(
                    code="DEADLINE_EXCEEDED",
                    message="not sent: earlier calls of this handle did not end in time",
                )
        try:
            yield
        finally:
            self._turn.release()

    def _turn_of(self, call: MutationCall[Any], most_in_flight: int) -> Turn:
        return self._sequence.give(
            call,
            most_in_flight=most_in_flight,
            timeout_seconds=call.deadline.remaining_seconds,
        )

    def _take_over(self, deadline: Deadline) -> int:
        how = self._sequence.begin_take_over(deadline.remaining_seconds)
        request = messages.CreateRunRequest(
            run_id=self._run_id,
            config=self._config,
            take_over=True,
            expected_writer_epoch=how.writer_epoch,
            attach_id=how.attach_id,
        )
        try:
            response = self._connection.ask(self._stub.CreateRun, request, deadline)
        except ServiceError as error:
            if error.code == "NOT_FOUND":
                error.hint = (
                    "it was deleted, or the student has started anew: runs live in its memory, so "
                    "create the run again and load its last checkpoint"
                )
            raise
        return self._sequence.end_take_over(response)

    def _limit(self, deadline: Deadline) -> int:
        """Most mutations in flight; asked for when there is a second one for the first time."""
        if self._most_in_flight is None:
            request = messages.StudentServiceGetModelInfoRequest()
            response = self._connection.ask(self._stub.GetModelInfo, request, deadline)
            window: int = response.model.limits.max_in_flight_mutations
            self._most_in_flight = max(1, min(MOST_IN_FLIGHT, window))
        return self._most_in_flight

    def _send(self, call: MutationCall[Any]) -> None:
        """Make the attempts of a call; a thread of its own."""
        try:
            response = self._connection.call(call.attempt, call.deadline)
        except BaseException as error:
            if changed_nothing(call.failures):
                self._refuse(call, error)
            else:
                self._lose(call, error)
        else:
            if self._sequence.applied(call):
                call.succeed(response)

    def _refuse(self, call: MutationCall[Any], error: BaseException) -> None:
        call.error = error
        ended = self._sequence.refused(call)
        for behind in ended[1:]:
            self._fail_behind(call, behind)
        for one in ended[:1]:
            one.fail(error, lambda: self._sequence.observed(call))

    def _fail_behind(self, refused: MutationCall[Any], behind: MutationCall[Any]) -> None:
        told = PredecessorFailedError(
            f"{behind.operation}: {refused.operation} before it was refused, so nothing of it was "
            "applied"
        )
        told.__cause__ = refused.error
        behind.fail(told, lambda: self._sequence.observed(refused))

    def _lose(self, call: MutationCall[Any], error: BaseException | None = None) -> None:
        ended = self._sequence.lost(call)
        for behind in ended[1:]:
            behind.fail(_uncertain(behind, call, error))
        for one in ended[:1]:
            one.fail(error or _uncertain(call, call, None))


def _uncertain(
    call: MutationCall[Any], lost: MutationCall[Any], error: BaseException | None
) -> UncertainMutationError:
    """What is said of a call that a lost one, itself or one before it, has made uncertain."""
    before = "" if lost is call else f"{lost.operation} before "
    told = UncertainMutationError(
        f"{call.operation}: {before}it ended without an answer, so it may have been applied; call "
        "resynchronize() to find out"
    )
    told.__cause__ = error
    return told
