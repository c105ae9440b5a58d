"""The one rule of retries, and what a person reads while it works."""

import logging

import pytest

from client.errors import ServiceError
from client.retry import SILENT_SECONDS, Attempts, OutageLog, RetryPolicy, is_retryable

LONG_SECONDS = 1000.0


class Clock:
    """The time that retries read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr("client.retry.time.monotonic", lambda: self.seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def failed(code: str = "UNAVAILABLE", **fields: object) -> ServiceError:
    return ServiceError(code=code, **{"message": "away", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (failed("UNAVAILABLE"), True),
        (failed("UNAVAILABLE", reason="UNAVAILABLE"), True),
        (failed("RESOURCE_EXHAUSTED", reason="TOO_MANY_REQUESTS", retry_seconds=0.5), True),
        (failed("RESOURCE_EXHAUSTED", reason="TOO_MANY_REQUESTS", retry_seconds=0.0), True),
        (failed("RESOURCE_EXHAUSTED", reason="LIMIT_EXCEEDED"), False),
        (failed("RESOURCE_EXHAUSTED"), False),
        (failed("ABORTED", retry_seconds=0.5), False),
        (failed("DEADLINE_EXCEEDED"), False),
    ],
)
def test_unavailable_and_busy_are_retried_and_nothing_else(
    error: ServiceError, retried: bool
) -> None:
    assert is_retryable(error) is retried
    attempts = Attempts(RetryPolicy())
    attempts.start()
    assert (attempts.delay_after(error, LONG_SECONDS) is not None) is retried


def test_delays_double_with_jitter_up_to_3_s() -> None:
    drawn = []
    for _ in range(20):
        attempts, delays = Attempts(RetryPolicy()), []
        for _ in range(40):
            attempts.start()
            delays.append(attempts.delay_after(failed(), LONG_SECONDS))
        drawn.append(delays)
    for index, delays in enumerate(zip(*drawn, strict=True)):
        longest = min(0.2 * 2**index, 3.0)
        assert all(longest / 2 <= delay <= longest for delay in delays)
        assert len(set(delays)) > 1


def test_a_delay_is_at_least_what_the_service_asks_for_and_clients_spread_beyond_it() -> None:
    busy = failed("RESOURCE_EXHAUSTED", retry_seconds=7.0)
    delays = []
    for _ in range(20):
        attempts = Attempts(RetryPolicy())
        attempts.start()
        delays.append(attempts.delay_after(busy, LONG_SECONDS))
    assert all(7.0 <= delay <= 10.5 for delay in delays)
    assert len(set(delays)) > 1
    attempts.start()
    assert attempts.delay_after(busy, 6.0) is None


def test_the_deadline_alone_ends_the_attempts(clock: Clock) -> None:
    attempts = Attempts(RetryPolicy())
    ends = []
    while True:
        attempts.start()
        delay = attempts.delay_after(failed(), 300 - clock.seconds)
        if delay is None:
            break
        clock.seconds += delay
        ends.append(clock.seconds)
    assert len(ends) > 100
    assert 299.6 < ends[-1] < 300  # tried until the very end, though delays are of 3 s by then


def test_a_service_that_never_answered_is_given_up_sooner_where_the_policy_says_so(
    clock: Clock,
) -> None:
    attempts = Attempts(RetryPolicy(unanswered_seconds=10))
    attempts.start()
    clock.seconds = 4
    assert attempts.left_seconds(300, was_answered=False) == 6
    assert attempts.left_seconds(5, was_answered=False) == 5
    assert attempts.left_seconds(300, was_answered=True) == 300
    assert Attempts(RetryPolicy()).left_seconds(300, was_answered=False) == 300


def conclude(clock: Clock, first: ServiceError, *, last_seconds: float) -> ServiceError:
    """What is raised after an error and an attempt that the deadline cut off."""
    attempts = Attempts(RetryPolicy())
    attempts.start()
    assert attempts.delay_after(first, LONG_SECONDS) is not None
    attempts.start()
    clock.seconds += last_seconds
    cut_off = failed("DEADLINE_EXCEEDED", message="Deadline Exceeded")
    assert attempts.delay_after(cut_off, 0) is None
    return attempts.conclude(cut_off)


def test_a_deadline_that_ends_retries_raises_the_problem_and_how_long_it_was_tried(
    clock: Clock,
) -> None:
    error = conclude(
        clock, failed(message="failed to connect", hint="is it there?"), last_seconds=4
    )
    assert error.attempts == 2
    assert str(error) == "UNAVAILABLE: failed to connect; is it there?; tried 2 times in 4.0 s"


def test_a_deadline_that_cuts_off_a_connected_attempt_is_named_with_what_broke_before(
    clock: Clock,
) -> None:
    error = conclude(clock, failed(message="Socket closed"), last_seconds=60)
    broken = "an earlier attempt ended with UNAVAILABLE: Socket closed"
    assert str(error) == f"DEADLINE_EXCEEDED: Deadline Exceeded; {broken}"
    assert error.attempts == 2


@pytest.mark.parametrize(
    "refusal",
    [
        failed(message="draining", reason="UNAVAILABLE"),
        failed("RESOURCE_EXHAUSTED", message="busy", reason="TOO_MANY_BYTES", retry_seconds=0.5),
    ],
)
def test_a_refusal_is_not_raised_for_a_later_attempt_that_may_have_changed_something(
    clock: Clock, refusal: ServiceError
) -> None:
    error = conclude(clock, refusal, last_seconds=1)
    assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "")
    assert f"an earlier attempt ended with {refusal.code}: {refusal.message}" in error.hint


def tell(log: OutageLog, call: object, waited_seconds: float = SILENT_SECONDS) -> None:
    log.tell(call, "UNAVAILABLE: away", waited_seconds=waited_seconds, left_seconds=297.4)


def test_one_warning_says_who_does_not_answer_why_and_how_long_it_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = OutageLog("the teacher at 127.0.0.1:1")
    tell(log, "call", SILENT_SECONDS - 0.1)
    assert caplog.messages == []
    for call in ("call", "call", "another call"):
        tell(log, call)
    said = "cannot answer now: UNAVAILABLE: away; trying again for up to 297 s"
    assert caplog.messages == [f"the teacher at 127.0.0.1:1 {said}"]
    log.answered()
    log.answered()
    assert caplog.messages[1:] == ["the teacher at 127.0.0.1:1 answers now"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_after_a_call_that_gave_up_the_next_one_warns_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = OutageLog("it")
    tell(log, "call")
    log.leave("another call")
    tell(log, "another call")
    assert len(caplog.messages) == 1
    log.leave("call")
    tell(log, "another call")
    assert len(caplog.messages) == 2
