"""An error is taken for "nothing changed" only where it says so of every attempt."""

import pytest

from client.certainty import changed_nothing
from client.errors import ServiceError
from distill import errors

LOST = ServiceError(code="UNAVAILABLE", message="Socket closed")
TOO_LARGE = ServiceError(code="RESOURCE_EXHAUSTED", message="larger than max")
REFUSALS_OF_ONE_ATTEMPT = [
    errors.SequenceReusedError,
    errors.WriterFencedError,
    errors.RunDeletedError,
    errors.NotFoundError,
    errors.AlreadyExistsError,
    errors.BusyError,
    errors.HeldBytesError,
    errors.LimitExceededError,
    errors.StorageFullError,
]
REFUSALS_OF_ALL_ATTEMPTS = [
    errors.InvalidFieldError,
    errors.IncompleteStreamError,
    errors.WrongStateError,
    errors.NoGradientError,
    errors.TooFarAheadError,
    errors.CorruptDataError,
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


@pytest.mark.parametrize("kind", REFUSALS_OF_ONE_ATTEMPT + REFUSALS_OF_ALL_ATTEMPTS)
def test_a_refusal_of_the_only_attempt_changed_nothing(kind: type[errors.DistillError]) -> None:
    assert changed_nothing([failure(kind)])
    assert changed_nothing([BUSY, failure(kind)])


@pytest.mark.parametrize("kind", REFUSALS_OF_ONE_ATTEMPT)
def test_a_conflict_after_an_attempt_without_an_answer_settles_nothing(
    kind: type[errors.DistillError],
) -> None:
    assert not changed_nothing([LOST, failure(kind)])
    assert not changed_nothing([LOST, BUSY, failure(kind)])


@pytest.mark.parametrize("kind", REFUSALS_OF_ALL_ATTEMPTS)
def test_a_refusal_of_the_request_itself_holds_for_earlier_attempts(
    kind: type[errors.DistillError],
) -> None:
    assert changed_nothing([LOST, failure(kind)])


@pytest.mark.parametrize("kind", NO_REFUSALS)
def test_what_is_no_refusal_settles_nothing(kind: type[errors.DistillError]) -> None:
    assert not changed_nothing([failure(kind)])
    assert not changed_nothing([BUSY, failure(kind)])


def test_a_resource_exhausted_of_grpc_itself_settles_nothing() -> None:
    assert not changed_nothing([TOO_LARGE])


def test_what_was_never_sent_changed_nothing() -> None:
    assert changed_nothing([])
