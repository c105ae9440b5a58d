"""Results of the device queue to a gRPC response stream."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import TypeVar

import grpc

from distill.engine.device_queue import DeviceQueue
from distill.errors import UnavailableError

ResultT = TypeVar("ResultT")


def stream_results(
    queue: DeviceQueue, pieces: Iterator[ResultT | None], context: grpc.ServicerContext
) -> Iterator[ResultT]:
    """Run the pieces on the device and yield their results for as long as the call lives.

    When the client cancels, leaves or runs out of time, the pieces stop at once, whether this
    generator waits for the device or gRPC waits for the client.
    """
    with queue.stream(pieces) as stream:
        if not context.add_callback(stream.cancel):
            return  # the call has ended already
        try:
            yield from stream
        except CancelledError:
            # By the client, which no longer listens, or by the queue at the end of a drain.
            raise UnavailableError("the service is shutting down") from None
