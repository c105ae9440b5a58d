"""What the student's caller sees of a teacher that could not answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distill.errors import (
    CallEndedError,
    DeadlineError,
    DistillError,
    InvalidFieldError,
    LimitExceededError,
    RelayedError,
    UnavailableError,
    WrongStateError,
)
from distill.rpc.status import ERROR_DOMAIN

PULL_FIELD = "header.batch.pull"
"""Where the teacher's request stands in the student's."""

_RELAYED_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAVAILABLE,
    }
)
"""What says the same of the student's call. Any other code would be taken for the student's own: a
method that it lacks, a credential it refuses, a mutation that it applied before."""


@dataclass(frozen=True, kw_only=True)
class _Details:
    """The parts of a google.rpc.Status beside its code and message."""

    reason: str
    """google.rpc.ErrorInfo.reason of a service of this contract; empty from anybody else."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """google.rpc.ErrorInfo.metadata."""

    retry_seconds: float | None = None
    """google.rpc.RetryInfo."""

    violations: Sequence[tuple[str, str]] = ()
    """Fields of google.rpc.BadRequest, and what is wrong with them."""


def teacher_error(name: str, error: grpc.RpcError, *, is_active: bool) -> DistillError:
    """The error of a student's call whose teacher failed.

    What a teacher of this contract says of the request or of its load is passed on as it is, with
    the teacher's name before the message and the paths of fields below `PULL_FIELD`.

    Args:
        name: of the teacher.
        error: of the call to it.
        is_active: whether the student's own call goes on.
    """
    code, message = error.code(), f"teacher {name!r}: {error.details()}"
    details = _parse_details(error)
    if details.reason and code in _RELAYED_CODES:
        metadata = dict(details.metadata)
        if "field" in metadata:
            metadata["field"] = f"{PULL_FIELD}.{metadata['field']}"
        return RelayedError(
            message,
            code=code.name,
            reason=details.reason,
            metadata=metadata,
            retry_seconds=details.retry_seconds,
            violations=[(f"{PULL_FIELD}.{path}", text) for path, text in details.violations],
        )
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidFieldError(f"{PULL_FIELD}.scoring", f"refused by {message}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Of gRPC itself, for a message that is too large: it comes back however often it is tried.
        return RelayedError(message, code=code.name, reason=LimitExceededError.reason)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"teacher {name!r} did not finish before the deadline")
    if code == grpc.StatusCode.CANCELLED and not is_active:
        return CallEndedError(f"the call ended while teacher {name!r} answered")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"teacher {name!r} is not reachable or draining")
    return WrongStateError(f"teacher {name!r} failed with {code.name}: {error.details()}")


def _parse_details(error: grpc.RpcError) -> _Details:
    """The details of a failed call. Those of kinds unknown here, or that do not parse, are skipped:
    the code and the message are always there."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        status = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    request = error_details_pb2.BadRequest()
    retry_seconds = None
    for detail in status.details if status is not None else ():
        try:
            if detail.Unpack(retry):
                retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
            else:
                _ = detail.Unpack(info) or detail.Unpack(request)
        except DecodeError:
            continue
    if info.domain != ERROR_DOMAIN:
        return _Details(reason="")
    return _Details(
        reason=info.reason,
        metadata=info.metadata,
        retry_seconds=retry_seconds,
        violations=[(each.field, each.description) for each in request.field_violations],
    )
