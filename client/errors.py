"""What the clients raise: every failed call is a `ServiceError` that says which field was wrong.

grpc.RpcError never leaves the client package.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class ClientError(Exception):
    """Base of what the client raises about a service, its answers or a file of data."""


@dataclass(frozen=True, kw_only=True)
class FieldViolation:
    """A field of a request that the service refused."""

    field: str
    """Path of the field, for example "scoring.top_k"."""

    problem: str
    """What is allowed and what the service got."""


@dataclass(eq=False, kw_only=True)
class ServiceError(ClientError):
    """A service answered with a status other than OK, or could not be reached."""

    code: str
    """Name of the gRPC status code, for example "INVALID_ARGUMENT"."""

    message: str
    """The service's message."""

    reason: str = ""
    """Stable, machine-readable reason of the service (google.rpc.ErrorInfo); empty if unknown."""

    violations: tuple[FieldViolation, ...] = ()
    """The fields at fault (google.rpc.BadRequest)."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """Further details, for example `field`, `limit` and `value` of an exceeded limit."""

    retry_seconds: float | None = None
    """When the same request may succeed, by the service's google.rpc.RetryInfo. None: it did not
    say."""

    attempts: int = 1
    """Attempts of the call that ended in this error, the last included. After more than one, an
    earlier attempt may have been carried out although this error says that nothing was changed."""

    hint: str = ""
    """What may be wrong and what to do, where the client knows more than the service can say."""

    @property
    def field(self) -> str | None:
        """Path of the first field at fault, or None where no field is."""
        if self.violations:
            return self.violations[0].field
        return self.metadata.get("field")

    def __str__(self) -> str:
        return f"{self.code}: {self.message}{self.hint and '; '}{self.hint}"


class UncertainMutationError(ClientError):
    """A call on a run ended without an answer, so it may or may not have been applied; or one that
    was sent before it did.

    `StudentRun.resynchronize` settles it and says which.
    """


class AnotherWriterError(ClientError):
    """The handle may read its run and not change it: the run has another writer.

    `create_run` with `take_over=True` gives a handle that is the writer, and fences the other one.
    """


class PredecessorFailedError(ClientError):
    """A call on a run that was sent before this one was refused, so this one never had its turn.

    Nothing of it was applied. Its cause is the error of the call that was refused.
    """


class BrokenStreamError(ClientError):
    """An answer breaks the contract: rows are missing, repeated or out of order."""


class DatasetError(ClientError):
    """Questions or text cannot be used; the message names the file and the line."""


class MismatchedPairError(ClientError):
    """The teacher and the student do not share a vocabulary."""


def parse_error(error: grpc.RpcError) -> ServiceError:
    """The ServiceError of a failed call, with the details of its google.rpc.Status.

    Details of kinds that this module does not know, or that do not parse, are skipped: the code and
    the message are always there.
    """
    parsed = ServiceError(code=error.code().name, message=error.details() or "no message")
    # A broken status, or a broken detail, is left out.
    with suppress(ValueError, DecodeError):
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            with suppress(DecodeError):
                _add_detail(parsed, detail)
    return parsed


def _add_detail(parsed: ServiceError, detail: any_pb2.Any) -> None:
    error_info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    if detail.Unpack(error_info):
        parsed.reason = error_info.reason
        parsed.metadata = dict(error_info.metadata)
    elif detail.Unpack(bad_request):
        parsed.violations = tuple(
            FieldViolation(field=violation.field, problem=violation.description)
            for violation in bad_request.field_violations
        )
    elif detail.Unpack(retry_info):
        parsed.retry_seconds = retry_info.retry_delay.ToNanoseconds() / 1e9


@contextmanager
def service_errors() -> Iterator[None]:
    """Inside, a grpc.RpcError becomes a ServiceError."""
    try:
        yield
    except grpc.RpcError as error:
        raise parse_error(error) from None
