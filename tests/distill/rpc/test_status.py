"""Every error as a status: its code, its reason, and what it tells programs."""

import inspect
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distill import errors
from distill.rpc.status import to_status
from tests.distill.rpc.served_methods import KINDS, Server

LONG_TEXTS = {"ascii": "x" * 20_000, "wide": "漢" * 20_000, "numbers": str([1 << 62] * 5000)}


@pytest.mark.parametrize("text", sorted(LONG_TEXTS))
@pytest.mark.parametrize(
    "make",
    [
        lambda text: errors.InvalidFieldError("scoring.top_k", f"must be among a, b, got {text}"),
        lambda text: errors.NotFoundError(f"run_id: there is no run {text!r}"),
    ],
    ids=["invalid", "not_found"],
)
def test_status_survives_whatever_the_error_repeats(
    server: Server, make: Callable[[str], errors.DistillError], text: str
) -> None:
    error = make(LONG_TEXTS[text])

    def fail(context: grpc.ServicerContext) -> None:  # noqa: ARG001
        raise error

    server.behaviour = fail
    for kind in KINDS:
        with pytest.raises(grpc.RpcError) as caught:
            server.call(kind)
        assert caught.value.code().name == error.code
        assert caught.value.details().startswith(error.message[:100])
        assert len(caught.value.details().encode()) <= 500
        assert str(len(error.message)) in caught.value.details()
        assert rpc_status.from_call(caught.value).details


CODES = {
    errors.DistillError("x"): "INTERNAL",
    errors.InvalidFieldError("top_k", "x"): "INVALID_ARGUMENT",
    errors.IncompleteStreamError("end", "x"): "INVALID_ARGUMENT",
    errors.LimitExceededError("prompts", 3, 4): "RESOURCE_EXHAUSTED",
    errors.BusyError("x"): "RESOURCE_EXHAUSTED",
    errors.HeldBytesError(3, 4): "RESOURCE_EXHAUSTED",
    errors.NotFoundError("x"): "NOT_FOUND",
    errors.AlreadyExistsError("x"): "ALREADY_EXISTS",
    errors.WrongStateError("x"): "FAILED_PRECONDITION",
    errors.NoGradientError("x"): "FAILED_PRECONDITION",
    errors.NonFiniteGradientError("x"): "FAILED_PRECONDITION",
    errors.TooFarAheadError("x"): "FAILED_PRECONDITION",
    errors.TokenizerMismatchError("x"): "FAILED_PRECONDITION",
    errors.StorageError("x"): "FAILED_PRECONDITION",
    errors.StorageFullError("x"): "RESOURCE_EXHAUSTED",
    errors.SequenceReusedError("x"): "ABORTED",
    errors.WriterFencedError("writer_epoch", current=2, got=1): "ABORTED",
    errors.RunDeletedError("x"): "ABORTED",
    errors.AlreadyAppliedError("x"): "OUT_OF_RANGE",
    errors.DeadlineError("x"): "DEADLINE_EXCEEDED",
    errors.CallEndedError("x"): "CANCELLED",
    errors.CorruptDataError("x"): "DATA_LOSS",
    errors.UnavailableError("x"): "UNAVAILABLE",
    errors.RelayedError("x", code="UNAVAILABLE", reason="UNAVAILABLE"): "UNAVAILABLE",
    errors.ModelError("x"): "FAILED_PRECONDITION",
}


def test_the_codes_of_all_errors_are_checked() -> None:
    defined = {kind for kind in vars(errors).values() if inspect.isclass(kind)}
    errors_of_ours = {kind for kind in defined if issubclass(kind, errors.DistillError)}
    assert {type(error) for error in CODES} == errors_of_ours


@pytest.mark.parametrize("error", CODES, ids=lambda error: type(error).__name__)
def test_every_error_has_its_code_and_reason(error: errors.DistillError) -> None:
    status = to_status(error)
    assert status.code == grpc.StatusCode[CODES[error]].value[0]
    assert status.message == error.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == error.reason


@pytest.mark.parametrize(
    ("error", "metadata"),
    [
        (
            errors.LimitExceededError("prompts", 3, 4),
            {"field": "prompts", "limit": "3", "value": "4"},
        ),
        (errors.HeldBytesError(3, 4), {"limit": "3", "value": "4"}),
        (errors.WriterFencedError("writer_epoch", current=2, got=1), {"writer_epoch": "2"}),
    ],
    ids=["limit", "held_bytes", "fenced"],
)
def test_the_numbers_of_an_error_are_there_for_programs(
    error: errors.DistillError, metadata: dict[str, str]
) -> None:
    info = error_details_pb2.ErrorInfo()
    to_status(error).details[0].Unpack(info)
    assert dict(info.metadata) == metadata


@pytest.mark.parametrize("error", CODES, ids=lambda error: type(error).__name__)
def test_what_may_be_retried_as_it_is_and_nothing_else_says_when(
    error: errors.DistillError,
) -> None:
    retry = error_details_pb2.RetryInfo()
    said = [detail.Unpack(retry) for detail in to_status(error).details]
    assert any(said) == (error.reason in ("TOO_MANY_REQUESTS", "TOO_MANY_BYTES"))
    if any(said):
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 5
