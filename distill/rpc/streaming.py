"""Results of the engine to a gRPC response stream."""

from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import TypeVar

import grpc

from distill.engine.result_stream import ResultStream
from distill.errors import UnavailableError

ResultT = TypeVar("ResultT")


def stream_results(
    results: ResultStream[ResultT], context: grpc.ServicerContext
) -> Iterator[ResultT]:
    """Yield the results for as long as the call lives.

    When the client cancels, leaves or runs out of time, their computation stops at once, whether
    this generator waits for the device or gRPC waits for the client.
    """
    with results:
        if not context.add_callback(results.cancel):
            return  # the call has ended already
        try:
            yield from results
        except CancelledError:
            # By the client, which no longer listens, or by the queue at the end of a drain.
            raise UnavailableError("the service is shutting down") from None
