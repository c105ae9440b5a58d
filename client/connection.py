"""A channel to a service: its options, its deadlines and the one kind of retry."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.errors import ServiceError, service_errors
from distill.rpc.address import channel_target
from distill.rpc.channel import CHANNEL_OPTIONS

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How UNAVAILABLE is retried. No other status is."""

    attempts: int = 5
    """Most attempts of one call, the first included."""

    first_delay_seconds: float = 0.2
    """Delay before the second attempt; it doubles with each further one."""

    max_delay_seconds: float = 3.0
    """Longest delay between two attempts."""


DEFAULT_RETRY = RetryPolicy()

CLOSE_SECONDS = 5.0
"""Most time for closing a channel; it takes milliseconds."""


class Role(StrEnum):
    """Which of the two services."""

    TEACHER = "teacher"
    STUDENT = "student"

    @property
    def other(self) -> "Role":
        """The other service, whose address may be given by mistake."""
        return Role.STUDENT if self is Role.TEACHER else Role.TEACHER


class Deadline:
    """A moment by which a call, with all its attempts, must have ended."""

    def __init__(self, timeout_seconds: float) -> None:
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds: must be greater than 0, got {timeout_seconds}")
        self._end = time.monotonic() + timeout_seconds

    @property
    def remaining_seconds(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())


class Connection:
    """A channel with a default deadline. Calls may be made from many threads."""

    def __init__(
        self,
        address: str,
        role: Role,
        *,
        timeout_seconds: float,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """Open a channel; it connects on the first call.

        Args:
            address: HOST:PORT of the service, or one of gRPC's own targets, as dns:///HOST:PORT.
            role: what the service is, for messages.
            timeout_seconds: deadline of a call that is not given one of its own.
            retry: how UNAVAILABLE is retried.

        Raises:
            ValueError: the address is neither.
        """
        try:
            self.address = channel_target(address)
        except ValueError as error:
            raise ValueError(f"address: {error}") from None
        self._role = role
        self.timeout_seconds = timeout_seconds
        self.channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._retry = retry

    def close(self) -> None:
        """Close the channel; calls in progress fail.

        Returns after `CLOSE_SECONDS` at most. gRPC waits until a thread of its own has ended the
        streams, and where Ctrl-C came between the birth of one and the start of that thread, it
        waits for ever. (Calls that block have no such thread.)
        """
        closing = threading.Thread(target=self.channel.close, name="close-channel", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def deadline(self, timeout_seconds: float | None) -> Deadline:
        """The deadline of a call that starts now."""
        return Deadline(self.timeout_seconds if timeout_seconds is None else timeout_seconds)

    def ask(
        self, method: Callable[..., Any], request: Message, limit: Deadline | float | None
    ) -> Any:
        """The answer of a unary RPC, retried as `call` does.

        Args:
            method: of a stub.
            request: what is asked.
            limit: a deadline, or the seconds until it. None: the connection's default.
        """
        deadline = limit if isinstance(limit, Deadline) else self.deadline(limit)
        return self.call(lambda timeout: method(request, timeout=timeout), deadline)

    def ask_stream(
        self, method: Callable[..., Any], request: Message, timeout_seconds: float | None
    ) -> Iterator[Any]:
        """The answers of a server stream, as `stream` gives them. Args are those of `ask`."""
        return self.stream(
            lambda timeout: method(request, timeout=timeout), self.deadline(timeout_seconds)
        )

    def call(self, attempt: Callable[[float], Answer], deadline: Deadline) -> Answer:
        """Run `attempt`, again while the service is UNAVAILABLE and time and attempts are left.

        Args:
            attempt: makes the call with the given timeout in seconds. It must be safe to repeat.
            deadline: of all the attempts together.

        Raises:
            ServiceError: any other status, or the last UNAVAILABLE. Where none answers in the end,
                but an earlier attempt met a service and broke off, the hint says how.
        """
        broken = ""
        for delay_seconds in (*self._delays(), math.inf):  # none after the last attempt
            try:
                with self._errors():
                    return attempt(deadline.remaining_seconds)
            except ServiceError as error:
                if error.code != "UNAVAILABLE" or deadline.remaining_seconds <= delay_seconds:
                    _tell_what_broke(error, broken)
                    raise
                if not error.hint:  # a hint says that nobody answered, so nothing broke off
                    broken = str(error)
            time.sleep(delay_seconds)
        raise AssertionError("the last attempt returns or raises")

    def stream(
        self, open_stream: Callable[[float], Iterator[Answer]], deadline: Deadline
    ) -> Iterator[Answer]:
        """The messages of a server stream; a retry happens only before its first message.

        Leaving the iteration early (or closing the generator) cancels the call on the service.
        """

        def start(timeout_seconds: float) -> tuple[Iterator[Answer], Answer | None]:
            opened = open_stream(timeout_seconds)
            return opened, next(opened, None)

        messages, first = self.call(start, deadline)
        try:
            if first is not None:
                yield first
            while (message := self._next(messages)) is not None:
                yield message
        finally:
            messages.cancel()  # type: ignore[attr-defined]  # a grpc call, which is its own iterator

    def _next(self, messages: Iterator[Answer]) -> Answer | None:
        # Around `next` alone. Around the loop's `yield`, an error that the consumer raises there
        # would count as the service's.
        with self._errors():
            return next(messages, None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """As `service_errors`; the error also says what to do where no service or the wrong one
        answers."""
        try:
            with service_errors():
                yield
        except ServiceError as error:
            error.hint = self._hint(error)
            raise

    def _hint(self, error: ServiceError) -> str:
        if error.reason:
            return ""  # the service itself has said what is wrong
        if error.code == "UNIMPLEMENTED":
            return (
                f"is {self.address} a {self._role.other}, where a {self._role} was asked for, or a "
                f"{self._role} of an older version?"
            )
        if error.code == "UNAVAILABLE" and "Connection refused" in error.message:
            return f"nothing listens at {self.address}; distill-{self._role} starts a {self._role}"
        return ""

    def _delays(self) -> Iterator[float]:
        for index in range(self._retry.attempts - 1):
            delay_seconds = self._retry.first_delay_seconds * 2**index
            # Jitter, so that many clients of one restarted service do not return in step.
            yield min(delay_seconds, self._retry.max_delay_seconds) * random.uniform(0.8, 1.2)


def _tell_what_broke(error: ServiceError, broken: str) -> None:
    """Add an earlier attempt's problem to an error that says only that nobody answers.

    Otherwise a service that went away in the middle of a call reads as one that never ran.
    """
    is_unanswered = error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and not error.reason
    if is_unanswered and broken not in ("", str(error)):
        told = f"an earlier attempt ended with {broken}"
        error.hint = "; ".join(filter(None, (error.hint, told)))


def wait_until_serving(address: str, *, service: str, timeout_seconds: float) -> None:
    """Wait until a service reports SERVING by grpc.health.v1.

    Args:
        address: HOST:PORT.
        service: full name, for example "distill.v1.TeacherService".
        timeout_seconds: how long to wait.

    Raises:
        ServiceError: it did not within that time; UNAVAILABLE, with the last problem.
        ValueError: the address is neither HOST:PORT nor one of gRPC's own targets.
    """
    channel_target(address)
    deadline = Deadline(timeout_seconds)
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                with service_errors():
                    answer = stub.Check(request, timeout=min(5.0, deadline.remaining_seconds))
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                problem = "it answers, but not SERVING"
            except ServiceError as error:
                problem = str(error)
            if deadline.remaining_seconds <= 0.5:
                raise ServiceError(
                    code="UNAVAILABLE",
                    message=f"{service} at {address} did not become ready within "
                    f"{timeout_seconds:g} s: {problem}",
                )
            time.sleep(0.5)
