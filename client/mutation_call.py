"""One mutation on its way: its attempts, and the future of its answer."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc

from client.connection import Deadline
from client.errors import ServiceError, service_errors
from client.sequence import NAP_SECONDS, Ticket
from distill.v1 import training_pb2

Answer = TypeVar("Answer")


class ObservedFuture(Future[Answer]):
    """A future that Ctrl-C interrupts, and that tells when somebody has looked how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.on_observed: Callable[[], None] = lambda: None
        """Called then; may be called again."""

    def result(self, timeout: float | None = None) -> Answer:
        """As in `Future`."""
        self._nap_until_done(timeout)
        try:
            return super().result(0)
        finally:
            self._observe()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in `Future`."""
        self._nap_until_done(timeout)
        try:
            return super().exception(0)
        finally:
            self._observe()

    def _nap_until_done(self, timeout: float | None) -> None:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self.done() and (left := end - time.monotonic()) > 0:
            with suppress(FutureTimeoutError):
                super().exception(min(NAP_SECONDS, left))

    def _observe(self) -> None:
        if self.done():
            self.on_observed()


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
        self.error: BaseException | None = None
        """Why it was refused."""
        self.future: ObservedFuture[Answer] = ObservedFuture()
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
        """Give the response to whoever waits; or the error, where it cannot be read."""
        try:
            answer = self._parse(response)
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(answer)

    def fail(self, error: BaseException, on_observed: Callable[[], None] = lambda: None) -> None:
        """End the call; an attempt under way is cancelled, and no further one is made.

        Args:
            error: what whoever waits gets.
            on_observed: called when they have got it.
        """
        self.future.on_observed = on_observed
        with self._lock:
            self._is_over = True
            running = self._running
        if running is not None:
            running.cancel()
        self.future.set_exception(error)
