"""Whether a mutation that failed was certainly not applied."""

from collections.abc import Sequence

from client.errors import ServiceError

_ABOUT_THE_REQUEST = frozenset(
    {
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "UNIMPLEMENTED",
        "DATA_LOSS",
    }
)
"""The service refuses the request as it is. A request that was applied before gets its first answer
again instead, so no earlier copy of this one was applied."""

_ABOUT_THE_STATE = frozenset({"NOT_FOUND", "ALREADY_EXISTS", "ABORTED"})
"""Something else is in the way. After a retry that may be the first attempt itself: it has used
the number (SEQUENCE_REUSED), made the checkpoint, deleted the run; or it was applied before
another writer took the run over (WRITER_FENCED)."""


def changed_nothing(failures: Sequence[ServiceError]) -> bool:
    """Whether none of a mutation's attempts can have been applied, so that its number is free.

    A refusal promises that nothing changed, but it speaks of its own attempt alone. An attempt
    before it that broke off without an answer may have been applied, and a service that is busy,
    or that meets a conflict, may say so before it finds the number used. What is no refusal at all
    (a deadline, a broken connection, INTERNAL) promises nothing. Neither does OUT_OF_RANGE: the
    number was applied, as happens to a repetition whose answer is kept no longer.

    Args:
        failures: the errors of all its attempts, in order. None: it was never sent.
    """
    if not failures:
        return True
    *earlier, last = failures
    if all(_is_refusal(one) for one in earlier):
        return _is_refusal(last)
    return last.code in _ABOUT_THE_REQUEST


def _is_refusal(error: ServiceError) -> bool:
    # gRPC says RESOURCE_EXHAUSTED also of an answer that is too large to be sent: then the mutation
    # was applied. What the service says itself has a reason.
    if error.code == "RESOURCE_EXHAUSTED":
        return bool(error.reason)
    return error.code in _ABOUT_THE_REQUEST | _ABOUT_THE_STATE
