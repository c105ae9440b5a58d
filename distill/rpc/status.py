"""Exceptions to gRPC statuses, in one place."""

from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from distill.errors import DistillError

ERROR_DOMAIN = "distill"
"""google.rpc.ErrorInfo.domain of every error."""

MAX_TEXT_BYTES = 500
"""Longest text of a status. Errors repeat what they got, which can be as long as a request; a
trailer beyond 8 KiB, with texts in it several times and escaped, may be dropped with its status."""


def to_status(error: BaseException) -> status_pb2.Status:
    """The google.rpc.Status of an exception.

    An exception that is no DistillError becomes INTERNAL with a fixed message: its own text may
    hold prompt text or paths.
    """
    if not isinstance(error, DistillError):
        error = DistillError("internal error; the service's log has its location")
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.code), message=_shortened(error.message)
    )
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=ERROR_DOMAIN,
            metadata={key: _shortened(value) for key, value in error.metadata.items()},
        )
    ]
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_shortened(field), description=_shortened(problem)
            )
            for field, problem in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _shortened(text: str) -> str:
    """At most MAX_TEXT_BYTES of it, and how long it was."""
    encoded = text.encode("utf-8", errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    end = f"… ({len(text)} characters)"
    kept = encoded[: MAX_TEXT_BYTES - len(end.encode())]
    return kept.decode("utf-8", errors="ignore") + end
