"""Whether a mutation that failed was certainly not applied."""

from collections.abc import Sequence

from client.errors import ServiceError

_REFUSALS = frozenset(
    {
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "UNIMPLEMENTED",
        "DATA_LOSS",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
    }
)
"""What a service says of a request that it has not applied. OUT_OF_RANGE is not among them: the
number was used, perhaps by an earlier attempt. INTERNAL promises nothing."""


def changed_nothing(failures: Sequence[ServiceError]) -> bool:
    """Whether none of a mutation's attempts can have been applied, so that its number is free.

    A refusal speaks of its own attempt alone. An attempt before it that broke off without an answer
    may be under way still, and a later one can be refused before the service looks at the number:
    its batch is read and its targets are pulled first. So all attempts must have been refused.

    Args:
        failures: the errors of all its attempts, in order. Empty: it was never sent.
    """
    return all(_is_refusal(one) for one in failures)


def _is_refusal(error: ServiceError) -> bool:
    # What the service says itself has a reason. Without one, a proxy speaks, or gRPC: it also says
    # RESOURCE_EXHAUSTED of an answer that is too large to be sent, when the mutation was applied.
    return bool(error.reason) and error.code in _REFUSALS
