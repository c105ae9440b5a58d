"""What a ServiceError takes from the status of a call."""

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from client.errors import ServiceError, parse_error
from distill.errors import BusyError, DistillError, HeldBytesError, LimitExceededError
from distill.rpc.status import to_status


class FailedCall(grpc.RpcError):
    """A call that ended with a google.rpc.Status."""

    def __init__(self, status: status_pb2.Status, trailer: bytes | None = None) -> None:
        super().__init__()
        self._status = status
        self._trailer = status.SerializeToString() if trailer is None else trailer

    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self._status.code)

    def details(self) -> str:
        return self._status.message

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", self._trailer),)


def parsed(error: DistillError, *before: Any) -> ServiceError:
    status = to_status(error)
    own = list(status.details)
    del status.details[:]
    status.details.extend([*before, *own])
    return parse_error(FailedCall(status))


@pytest.mark.parametrize("error", [BusyError("busy"), HeldBytesError(10, 20)])
def test_the_delay_of_retry_info_is_read(error: DistillError) -> None:
    assert parsed(error).retry_seconds == error.retry_seconds == 0.5


def test_without_retry_info_there_is_no_delay() -> None:
    assert parsed(LimitExceededError("scoring.top_k", 5, 9)).retry_seconds is None


def test_a_detail_that_does_not_parse_is_left_out_and_the_others_stay() -> None:
    name = error_details_pb2.RetryInfo.DESCRIPTOR.full_name
    broken = any_pb2.Any(type_url=f"type.googleapis.com/{name}", value=b"\xff")
    help_ = any_pb2.Any()
    help_.Pack(error_details_pb2.Help())
    error = parsed(LimitExceededError("scoring.top_k", 5, 9), broken, help_)
    assert (error.reason, error.field, error.retry_seconds) == (
        "LIMIT_EXCEEDED",
        "scoring.top_k",
        None,
    )


def test_a_status_that_does_not_parse_leaves_code_and_message() -> None:
    error = parse_error(FailedCall(to_status(BusyError("busy")), trailer=b"\xff"))
    assert (error.code, error.message, error.reason) == ("RESOURCE_EXHAUSTED", "busy", "")
