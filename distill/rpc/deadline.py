"""How much time a call has left."""

import grpc

_NO_DEADLINE_SECONDS = 10 * 365 * 24 * 3600.0


def remaining_seconds(context: grpc.ServicerContext) -> float | None:
    """Seconds until the caller's deadline; None where it set none.

    gRPC's own `time_remaining` gives a call without a deadline hundreds of years, which overflows
    Python's locks.
    """
    remaining: float | None = context.time_remaining()
    if remaining is None or remaining > _NO_DEADLINE_SECONDS:
        return None
    return remaining
