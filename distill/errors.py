"""Errors that users see. Raised anywhere below the servicers, mapped to a gRPC status in one place.

The mapping lives in `distill.rpc.status`; this module knows no gRPC, so that the compute code
can raise these without importing a transport.
"""

from typing import ClassVar


class DistillError(Exception):
    """Base of all errors that carry a message meant for the caller.

    The message must not contain a file path, a token or prompt text.
    """

    code: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code."""

    reason: ClassVar[str] = "INTERNAL"
    """Stable, machine-readable reason, UPPER_SNAKE_CASE (google.rpc.ErrorInfo.reason)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidFieldError(DistillError):
    """A field of the request is wrong; says which, what is allowed, and what it got."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


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


class BusyError(DistillError):
    """Every request slot, or every place to wait, of the service is taken."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_REQUESTS"


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


class NonFiniteGradientError(WrongStateError):
    """The batch has a NaN or infinite gradient; the gradient sum is untouched."""

    reason = "NON_FINITE_GRADIENT"


class SequenceConflictError(DistillError):
    """A sequence number was reused for another request, or the writer was fenced."""

    code = "ABORTED"
    reason = "SEQUENCE_CONFLICT"


class AlreadyAppliedError(DistillError):
    """A sequence number whose answer is no longer kept."""

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
    """The service, or a service it depends on, cannot answer now; the only error to retry."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class ModelError(DistillError):
    """A model cannot be found, or is of a kind that is not supported."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_UNSUPPORTED"
