"""How a call is repeated that a service cannot answer now, and what a person reads meanwhile."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.errors import ServiceError
from distill.rpc.channel import CONNECT_SECONDS

_LOGGER = logging.getLogger(__name__)

SILENT_SECONDS = 3.0
"""How long somebody may wait for a call that has to be repeated before a warning says why."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How a call is repeated: after UNAVAILABLE, and after RESOURCE_EXHAUSTED with RetryInfo.

    No other status is retried. By default the call's deadline alone ends the attempts, as the
    contract says, so that a running script outlives a restart of its service.
    """

    attempts: int | None = None
    """Most attempts of one call, the first included. None: as many as its deadline allows."""

    unanswered_seconds: float | None = None
    """How long a service is tried that has never answered on this connection. None: until the
    deadline. A person who names a wrong port wants to know it soon; a script that the service has
    answered once must wait for it all the same."""

    first_delay_seconds: float = 0.2
    """Longest delay before the second attempt; it doubles with each further one."""

    max_delay_seconds: float = 3.0
    """Longest delay between two attempts, unless the service asks for a longer one."""

    before_retry: Callable[[], object] | None = None
    """Called before each further attempt. It raises where none makes sense, for example because the
    service was started by this program and has ended."""


DEFAULT_RETRY = RetryPolicy()


class Attempts:
    """The attempts of one call so far: whether another one follows, and what is raised if not."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._started = self._attempt_started = time.monotonic()
        self._count = 0
        self._broken = ""
        self._last: ServiceError | None = None

    @property
    def waited_seconds(self) -> float:
        """How long the caller has waited."""
        return time.monotonic() - self._started

    def start(self) -> None:
        """An attempt starts."""
        self._count += 1
        self._attempt_started = time.monotonic()

    def left_seconds(self, deadline_seconds: float, *, was_answered: bool) -> float:
        """How long the call may still be tried.

        Args:
            deadline_seconds: what is left of its deadline.
            was_answered: whether the service has ever answered on this connection.
        """
        limit = self._policy.unanswered_seconds
        if was_answered or limit is None:
            return deadline_seconds
        return min(deadline_seconds, limit - self.waited_seconds)

    def delay_after(self, error: ServiceError, left_seconds: float) -> float | None:
        """Seconds until the next attempt. None: the error is the call's."""
        is_last = self._count == self._policy.attempts
        if is_last or not is_retryable(error) or left_seconds < self._policy.first_delay_seconds:
            return None
        asked = max(0.0, error.retry_seconds or 0.0)
        doubled = self._policy.first_delay_seconds * 2.0 ** min(self._count - 1, 30)
        # A last attempt shortly before the end is worth more than the whole of a long delay.
        longest = min(doubled, self._policy.max_delay_seconds, left_seconds / 2)
        # Jitter, so that many clients of one restarted service do not return in step. All are
        # asked for the same delay, so theirs spreads beyond it.
        longest = max(longest, 1.5 * asked)
        delay = random.uniform(max(asked, longest / 2), longest)
        if delay >= left_seconds:
            return None
        if not _never_arrived(error):
            self._broken = f"{error.code}: {error.message}"
        self._last = error
        return delay

    def conclude(self, error: ServiceError) -> ServiceError:
        """The error to raise after the last attempt: with what came of the attempts before it."""
        last, seconds = self._last, time.monotonic() - self._attempt_started
        # The deadline cut off an attempt that may still have been connecting. That nobody answers
        # says more. A refusal by the service is never taken instead: it promises that nothing has
        # changed, and the attempt that was cut off may have changed something.
        is_cut_off = error.code == "DEADLINE_EXCEEDED" and not error.reason
        is_unanswered = last is not None and last.code == "UNAVAILABLE" and not last.reason
        if last is not None and is_cut_off and is_unanswered and seconds < CONNECT_SECONDS + 1:
            error = last
        error.attempts = self._count
        if self._last is None:
            return error
        hints = [error.hint]
        # Otherwise a service that went away in the middle of a call reads as one that never ran.
        is_answer = error.reason or error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        if not is_answer and self._broken not in ("", f"{error.code}: {error.message}"):
            hints.append(f"an earlier attempt ended with {self._broken}")
        if is_retryable(error):
            hints.append(f"tried {self._count} times in {self.waited_seconds:.1f} s")
        error.hint = "; ".join(filter(None, hints))
        return error


def is_retryable(error: ServiceError) -> bool:
    """Whether the contract says that the same request may succeed later.

    RESOURCE_EXHAUSTED without RetryInfo is a limit, which the same request exceeds again.
    """
    if error.code == "RESOURCE_EXHAUSTED":
        return error.retry_seconds is not None
    return error.code == "UNAVAILABLE"


def _never_arrived(error: ServiceError) -> bool:
    """Whether no connection came about, so that nothing broke off."""
    return "failed to connect" in error.message or "Connection refused" in error.message


class OutageLog:
    """Tells a person that a service cannot answer, once for all the calls that wait for it."""

    def __init__(self, service: str) -> None:
        """Args:
        service: what it is and where, for example "the teacher at 127.0.0.1:50051".
        """
        self._service = service
        self._lock = threading.Lock()
        self._teller: object | None = None

    def tell(
        self, call: object, problem: object, *, waited_seconds: float, left_seconds: float
    ) -> None:
        """Warn that the service cannot answer, unless a waiting call has said so, or it is soon.

        Args:
            call: which call waits.
            problem: why the service cannot answer.
            waited_seconds: how long the call will have waited before its next attempt.
            left_seconds: how long it goes on trying.
        """
        with self._lock:
            if self._teller is not None or waited_seconds < SILENT_SECONDS:
                return
            self._teller = call
        _LOGGER.warning(
            "%s cannot answer now: %s; trying again for up to %.0f s",
            self._service,
            problem,
            left_seconds,
        )

    def answered(self) -> None:
        """The service has answered a call."""
        with self._lock:
            was_told, self._teller = self._teller is not None, None
        if was_told:
            # At the level of the warning that it ends: whoever saw that one wants to see this.
            _LOGGER.warning("%s answers now", self._service)

    def leave(self, call: object) -> None:
        """The call has ended, so another one that waits may tell."""
        with self._lock:
            if self._teller is call:
                self._teller = None
