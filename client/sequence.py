"""The sequence numbers of one run's writer: hidden from the user of a run."""

import threading
import uuid
from collections.abc import Callable
from typing import TypeVar

from client.errors import ServiceError, UncertainMutationError
from distill.v1 import student_service_pb2 as messages
from distill.v1 import training_pb2

Answer = TypeVar("Answer")

# Raised by the service before anything changed; the number is free for the next mutation.
# Everything else (the deadline passed, the connection broke) leaves it open. So does OUT_OF_RANGE:
# the number was applied before, which happens to a repeated request whose answer is kept no longer.
_REFUSALS = frozenset(
    {
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "ABORTED",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "UNIMPLEMENTED",
        "DATA_LOSS",
    }
)


def _is_refusal(error: ServiceError) -> bool:
    # gRPC says RESOURCE_EXHAUSTED also of an answer that is too large to be sent: then the mutation
    # was applied. What the service says itself has a reason.
    if error.code == "RESOURCE_EXHAUSTED":
        return bool(error.reason)
    return error.code in _REFUSALS


class MutationSequence:
    """Gives every mutation its number; one at a time, in the order of the calls.

    A refused mutation leaves its number to the next one. After a mutation that ended without an
    answer nobody here knows whether its number is used: then every further one is refused until
    `resynchronize`.
    """

    def __init__(self, *, run_id: str, writer_epoch: int, last_sequence_number: int) -> None:
        self._run_id = run_id
        self._writer_epoch = writer_epoch
        self._last = last_sequence_number
        self._uncertain: str | None = None
        self._attach_id: str | None = None
        self._lock = threading.Lock()

    def apply(self, operation: str, mutate: Callable[[training_pb2.Mutation], Answer]) -> Answer:
        """Run `mutate` with the next number.

        Args:
            operation: its name, for errors.
            mutate: makes the call; may send it several times with the header it is given.

        Raises:
            UncertainMutationError: an earlier mutation ended without an answer.
        """
        with self._lock:
            if self._uncertain is not None:
                raise UncertainMutationError(
                    f"{self._uncertain} ended without an answer and may have been applied; call "
                    "resynchronize() to find out"
                )
            header = training_pb2.Mutation(
                run_id=self._run_id,
                writer_epoch=self._writer_epoch,
                sequence_number=self._last + 1,
            )
            try:
                answer = mutate(header)
            except ServiceError as error:
                if not _is_refusal(error):
                    self._uncertain = operation
                raise
            except (KeyboardInterrupt, SystemExit):
                # Ctrl-C, or SIGTERM as `distill` has it: raised wherever the program was. Any other
                # exception is of the caller's own data, before the request was whole.
                self._uncertain = operation
                raise
            self._last += 1
            return answer

    def resynchronize(self, take_over: Callable[[str, int], messages.CreateRunResponse]) -> bool:
        """Settle the uncertain mutation; True when it was applied.

        The run is taken over from this very writer. Whatever of the uncertain mutation is still
        under way is then over: done and counted, or fenced and never to be applied.

        Args:
            take_over: raises the run's epoch once nothing is in flight; gets the name of this
                attempt and the epoch of the writer that it is taken from.

        Raises:
            ServiceError: ABORTED (WRITER_FENCED) when another writer has taken over.
        """
        with self._lock:
            # Kept until it is answered: the epoch may have been raised though the answer is lost.
            # A repetition then gets that epoch, and takes the run from nobody else.
            self._attach_id = self._attach_id or uuid.uuid4().hex
            response = take_over(self._attach_id, self._writer_epoch)
            if response.writer_epoch != response.run.writer_epoch:
                raise ServiceError(
                    code="ABORTED",
                    message=f"run {self._run_id!r}: another writer took over",
                    reason="WRITER_FENCED",
                )
            applied = response.run.last_sequence_number > self._last
            self._last = response.run.last_sequence_number
            self._writer_epoch = response.writer_epoch
            self._uncertain, self._attach_id = None, None
            return applied
