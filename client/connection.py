"""A channel to a service: its options, its deadlines, and the attempts of a call."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.errors import ServiceError, service_errors
from client.retry import DEFAULT_RETRY, Attempts, OutageLog, RetryPolicy
from distill.rpc.address import channel_target
from distill.rpc.channel import CHANNEL_OPTIONS

Answer = TypeVar("Answer")


_SILENCE = ("ping timeout", "before receiving SETTINGS")
"""What gRPC says of a peer whose system answers, but whose process does not."""

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
            retry: how a call is repeated that the service cannot answer now.

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
        self._outage = OutageLog(f"the {role} at {self.address}")
        self._was_answered = False

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
        """Run `attempt`, again while the service cannot answer now and the policy allows it.

        A warning says what is waited for where the wait is longer than a few seconds.

        Args:
            attempt: makes the call with the given timeout in seconds. It must be safe to repeat.
            deadline: of all the attempts together.

        Raises:
            ServiceError: any status that is not retried, or that of the last attempt. Where none
                answers in the end, but an earlier attempt met a service and broke off, the hint
                says how.
        """
        attempts = Attempts(self._retry)
        try:
            while True:
                attempts.start()
                try:
                    with self._errors():
                        answer = attempt(deadline.remaining_seconds)
                except ServiceError as error:
                    delay_seconds = self._delay_after(error, attempts, deadline)
                    if delay_seconds is None:
                        raise attempts.conclude(error) from None
                else:
                    self._was_answered = True
                    self._outage.answered()
                    return answer
                time.sleep(delay_seconds)
                if self._retry.before_retry is not None:
                    self._retry.before_retry()
        finally:
            self._outage.leave(attempts)

    def _delay_after(
        self, error: ServiceError, attempts: Attempts, deadline: Deadline
    ) -> float | None:
        """Seconds until the next attempt, of which a person hears. None: there is none."""
        if error.reason:
            self._was_answered = True
        left_seconds = attempts.left_seconds(
            deadline.remaining_seconds, was_answered=self._was_answered
        )
        delay_seconds = attempts.delay_after(error, left_seconds)
        if delay_seconds is not None:
            self._outage.tell(
                attempts,
                error,
                waited_seconds=attempts.waited_seconds + delay_seconds,
                left_seconds=left_seconds,
            )
        return delay_seconds

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
        if error.code == "RESOURCE_EXHAUSTED" and "larger than max" in error.message:
            return (
                "a message is larger than gRPC takes; Limits.max_message_bytes of the service's "
                "model_info() says how large one may be: send less in one call"
            )
        if error.code == "DEADLINE_EXCEEDED":
            return (
                f"{self.address} did not answer within the call's timeout: is it busy, or is its "
                "process stopped?"
            )
        if error.code != "UNAVAILABLE":
            return ""
        if "Connection refused" in error.message:
            return f"nothing listens at {self.address}; distill-{self._role} starts a {self._role}"
        if any(text in error.message for text in _SILENCE):
            return f"{self.address} takes connections and says nothing: is its process stopped?"
        return ""


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
    outage = OutageLog(f"{service} at {channel_target(address)}")
    deadline = Deadline(timeout_seconds)
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                with service_errors():
                    answer = stub.Check(request, timeout=min(5.0, deadline.remaining_seconds))
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    outage.answered()
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
            outage.tell(
                deadline,
                problem,
                waited_seconds=timeout_seconds - deadline.remaining_seconds,
                left_seconds=deadline.remaining_seconds,
            )
            time.sleep(0.5)
