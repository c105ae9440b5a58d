"""Errors that users see. Raised anywhere below the servicers, mapped to a gRPC status in one place.

The mapping lives in `distill.rpc.status`; this module knows no gRPC, so that the compute code
can raise these without importing a transport.
"""

from collections.abc import Mapping, Sequence


class DistillError(Exception):
    """Base of all errors that carry a message meant for the caller.

    The message must not contain a file path, a token or prompt text.
    """

    code: str = "INTERNAL"
    """Name of the gRPC status code."""

    reason: str = "INTERNAL"
    """Stable, machine-readable reason: a name of the enum `ErrorReason` without its prefix."""

    retry_seconds: float | None = None
    """When the same request may succeed (google.rpc.RetryInfo). None: it will not by itself."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def metadata(self) -> Mapping[str, str]:
        """Details for programs (google.rpc.ErrorInfo.metadata)."""
        return {}

    @property
    def violations(self) -> Sequence[tuple[str, str]]:
        """The paths of fields at fault, and what is wrong with each (google.rpc.BadRequest)."""
        return ()


class InvalidFieldError(DistillError):
    """A field of the request is wrong; says which, what is allowed, and what it got."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    @property
    def violations(self) -> Sequence[tuple[str, str]]:
        """The one field."""
        return ((self.field, self.problem),)


class IncompleteStreamError(InvalidFieldError):
    """A client stream ended before the part that says so; a broken connection looks like that."""

    reason = "INCOMPLETE_STREAM"


class LimitExceededError(DistillError):
    """A request is larger than the service accepts."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_EXCEEDED"

    def __init__(self, field: str, limit: int, value: int, *, unit: str = "") -> None:
        """Name the unit where the field does not say it, for example "bytes"."""
        super().__init__(f"{field}: must be at most {limit}{unit and ' '}{unit}, got {value}")
        self.field = field
        self.limit = limit
        self.value = value

    @property
    def metadata(self) -> Mapping[str, str]:
        """Field, limit and value."""
        return {"field": self.field, "limit": str(self.limit), "value": str(self.value)}


class BusyError(DistillError):
    """Every request slot, or every place to wait, of the service is taken."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_REQUESTS"
    retry_seconds = 0.5


class HeldBytesError(BusyError):
    """The requests in progress hold as many bytes as the service was started for."""

    reason = "TOO_MANY_BYTES"

    def __init__(self, limit: int, value: int) -> None:
        super().__init__(
            f"the requests in progress may hold {limit} bytes together, and with this one they "
            f"would hold {value}"
        )
        self.limit = limit
        self.value = value

    @property
    def metadata(self) -> Mapping[str, str]:
        """Limit and value."""
        return {"limit": str(self.limit), "value": str(self.value)}


class NotFoundError(DistillError):
    """The named thing does not exist."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExistsError(DistillError):
    """The name is taken by something else."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class WrongStateError(DistillError):
    """The request is well formed but does not fit the present state."""

    code = "FAILED_PRECONDITION"
    reason = "WRONG_STATE"


class NoGradientError(WrongStateError):
    """A step without a weighted row in the gradient sum."""

    reason = "NO_GRADIENT"


class NonFiniteGradientError(WrongStateError):
    """The batch has a NaN or infinite gradient; the gradient sum is untouched."""

    reason = "NON_FINITE_GRADIENT"


class TooFarAheadError(WrongStateError):
    """A sequence number further ahead of the last applied one than may be in flight."""

    reason = "TOO_FAR_AHEAD"


class TokenizerMismatchError(WrongStateError):
    """The teacher names tokens differently than the student."""

    reason = "MISMATCHED_PAIR"


class StorageError(DistillError):
    """Files cannot be written, read or removed; nothing was changed."""

    code = "FAILED_PRECONDITION"
    reason = "STORAGE_FAILED"


class StorageFullError(StorageError):
    """The disk is full; nothing was changed."""

    code = "RESOURCE_EXHAUSTED"
    reason = "STORAGE_FULL"


class SequenceReusedError(DistillError):
    """A sequence number was used, or is in flight, with other content."""

    code = "ABORTED"
    reason = "SEQUENCE_REUSED"


class WriterFencedError(DistillError):
    """The epoch is not the current one: another writer has the run."""

    code = "ABORTED"
    reason = "WRITER_FENCED"

    def __init__(self, field: str, *, current: int, got: int) -> None:
        why = "another writer took over" if got < current else "no writer was given it"
        super().__init__(f"{field}: the current epoch is {current}, got {got}: {why}")
        self.current = current

    @property
    def metadata(self) -> Mapping[str, str]:
        """The current epoch."""
        return {"writer_epoch": str(self.current)}


class RunDeletedError(DistillError):
    """The run was deleted while the request waited."""

    code = "ABORTED"
    reason = "RUN_DELETED"


class AlreadyAppliedError(DistillError):
    """A sequence number that was used so long ago that its answer and digest are not kept."""

    code = "OUT_OF_RANGE"
    reason = "ALREADY_APPLIED"


class DeadlineError(DistillError):
    """The caller's deadline passed while the request waited; nothing was changed."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class CallEndedError(DistillError):
    """The caller left before its request had its turn; nothing was changed."""

    code = "CANCELLED"
    reason = "CALL_ENDED"


class CorruptDataError(DistillError):
    """Stored data does not match its digest."""

    code = "DATA_LOSS"
    reason = "CORRUPT_DATA"


class UnavailableError(DistillError):
    """The service, or a service it depends on, cannot answer now."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class RelayedError(DistillError):
    """What another service said, in its own words."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        retry_seconds: float | None = None,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_seconds = retry_seconds
        self._metadata = metadata or {}
        self._violations = violations

    @property
    def metadata(self) -> Mapping[str, str]:
        """Of the other service."""
        return self._metadata

    @property
    def violations(self) -> Sequence[tuple[str, str]]:
        """Of the other service."""
        return self._violations


class ModelError(DistillError):
    """A model cannot be found, or is of a kind that is not supported."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_UNSUPPORTED"
