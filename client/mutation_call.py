"""One mutation on its way: its attempts, and the future of its answer."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import grpc

from client.connection import Deadline
from client.errors import ServiceError, service_errors
from client.sequence import Ticket
from distill.v1 import training_pb2

Answer = TypeVar("Answer")


class MutationCall(Ticket, Generic[Answer]):
    """A mutation with what sends it and what waits for it."""

    def __init__(
        self,
        operation: str,
        deadline: Deadline,
        start: Callable[[training_pb2.Mutation, float], Any],
        parse: Callable[[Any], Answer],
    ) -> None:
        """Args:
        operation: its name, for errors.
        deadline: of all its attempts together.
        start: starts an attempt with the header and the timeout in seconds, and returns gRPC's
            future of it.
        parse: what the caller gets of the response.
        """
        super().__init__(operation)
        self.deadline = deadline
        self.failures: list[ServiceError] = []
        """The errors of the attempts so far."""
        self.future: Future[Answer] = Future()
        # So that nobody can cancel it: what was sent may be carried out.
        self.future.set_running_or_notify_cancel()
        self._start = start
        self._parse = parse
        self._lock = threading.Lock()
        self._running: Any = None
        self._is_over = False

    def attempt(self, timeout_seconds: float) -> Any:
        """Make one attempt, and wait for the response."""
        with self._lock:
            if self._is_over:
                raise ServiceError(code="CANCELLED", message="nobody waits for the call any more")
            self._running = running = self._start(self.header, timeout_seconds)
        try:
            with service_errors():
                return running.result()
        except grpc.FutureCancelledError:
            error = ServiceError(code="CANCELLED", message="nobody waits for the call any more")
            self.failures.append(error)
            raise error from None
        except ServiceError as error:
            self.failures.append(error)
            raise

    def succeed(self, response: Any) -> None:
        """Give the response to whoever waits; it is theirs to hear that it cannot be read."""
        try:
            answer = self._parse(response)
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """End the call; an attempt under way is cancelled, and no further one is made."""
        with self._lock:
            self._is_over = True
            running = self._running
        if running is not None:
            running.cancel()
        self.future.set_exception(error)
