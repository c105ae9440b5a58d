"""An error is taken for "nothing changed" only where it says so of every attempt."""

import pytest

from client.certainty import changed_nothing
from client.errors import ServiceError
from distill import errors

LOST = ServiceError(code="UNAVAILABLE", message="Socket closed")
REFUSALS = [
    errors.InvalidFieldError,
    errors.IncompleteStreamError,
    errors.WrongStateError,
    errors.NoGradientError,
    errors.TooFarAheadError,
    errors.CorruptDataError,
    errors.SequenceReusedError,
    errors.WriterFencedError,
    errors.RunDeletedError,
    errors.NotFoundError,
    errors.AlreadyExistsError,
    errors.BusyError,
    errors.HeldBytesError,
    errors.LimitExceededError,
    errors.StorageError,
    errors.StorageFullError,
]
NO_REFUSALS = [
    errors.DistillError,
    errors.DeadlineError,
    errors.CallEndedError,
    errors.UnavailableError,
    errors.AlreadyAppliedError,
]


def failure(kind: type[errors.DistillError]) -> ServiceError:
    return ServiceError(code=kind.code, message="no", reason=kind.reason)


BUSY = failure(errors.BusyError)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_mutation_whose_attempts_were_all_refused_changed_nothing(
    kind: type[errors.DistillError],
) -> None:
    assert changed_nothing([failure(kind)])
    assert changed_nothing([BUSY, failure(kind)])


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_says_nothing_of_an_earlier_attempt_without_an_answer(
    kind: type[errors.DistillError],
) -> None:
    assert not changed_nothing([LOST, failure(kind)])
    assert not changed_nothing([LOST, BUSY, failure(kind)])


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_without_a_reason_is_not_the_services(kind: type[errors.DistillError]) -> None:
    assert not changed_nothing([ServiceError(code=kind.code, message="no")])


@pytest.mark.parametrize("kind", NO_REFUSALS)
def test_what_is_no_refusal_settles_nothing(kind: type[errors.DistillError]) -> None:
    assert not changed_nothing([failure(kind)])
    assert not changed_nothing([BUSY, failure(kind)])


def test_what_was_never_sent_changed_nothing() -> None:
    assert changed_nothing([])
