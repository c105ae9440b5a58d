"""What stands before every method of a service: slots, counted messages, and errors as statuses."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from distill.errors import BusyError, DistillError
from distill.limits import MAX_HELD_BYTES, MAX_REQUEST_BYTES, MAX_SILENT_SECONDS
from distill.rpc.byte_budget import ByteBudget, HeldMemory, memory_of_call
from distill.rpc.request_messages import Receiver, RequestMessages
from distill.rpc.status import to_status

_LOGGER = logging.getLogger(__name__)

# Health answers whatever else the service is doing, and its handlers carry gRPC attributes that a
# wrapper would hide. Reflection describes a service that is busy, too.
_EXEMPT_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_SPARE_RECEIVERS = 1000
"""A call that is answered before its caller has closed the stream keeps its thread until the
caller has taken the answer. Such calls have no slot, and must leave threads to those with one."""

Handler = Callable[[Any, grpc.ServicerContext], Any]


class RequestGuard(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Turns what a servicer raises into a status, and bounds what requests in progress take.

    The bound on their number leaves threads of the server's pool free, so health checks always
    find one. gRPC hands over a request's messages as bytes: it would answer malformed ones with
    INTERNAL, and log them, and only bytes are counted without serializing them again. A message is
    counted when it has arrived whole, so beside the budget each request has one that is on its way.
    """

    def __init__(
        self,
        max_concurrent_requests: int,
        *,
        max_held_bytes: int = MAX_HELD_BYTES,
        max_silent_seconds: float = MAX_SILENT_SECONDS,
    ) -> None:
        self._max_concurrent_requests = max_concurrent_requests
        self._max_request_bytes = min(MAX_REQUEST_BYTES, max_held_bytes)
        self._receiver = Receiver(max_concurrent_requests + _SPARE_RECEIVERS, max_silent_seconds)
        self._lock = threading.Lock()
        self.budget = ByteBudget(max_held_bytes)
        """What the requests in progress hold."""
        self.in_progress = 0
        """Requests that are being answered; health checks do not count."""

    def close(self) -> None:
        """End the threads that wait for messages. The server has stopped."""
        self._receiver.close()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(_EXEMPT_SERVICES):
            return handler
        # For gRPC all requests are streams: it would wait for the one message of a unary request
        # before it calls the handler, without a limit and whether or not there is a slot.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(handler, method), response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary(handler, method), response_serializer=handler.response_serializer
        )

    def _unary(self, handler: grpc.RpcMethodHandler, method: str) -> Handler:
        behavior = handler.stream_unary or handler.unary_unary

        def handle(wire: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._guarded(method, context) as memory:
                return behavior(self._request(handler, wire, memory), context)

        return handle

    def _streaming(self, handler: grpc.RpcMethodHandler, method: str) -> Handler:
        behavior = handler.stream_stream or handler.unary_stream

        # A generator: nothing is taken before gRPC starts to iterate, and its `finally` runs when
        # gRPC drops it, so what a call took is always given back.
        def handle(wire: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._guarded(method, context) as memory:
                yield from behavior(self._request(handler, wire, memory), context)

        return handle

    def _request(
        self, handler: grpc.RpcMethodHandler, wire: Iterator[bytes], memory: HeldMemory
    ) -> Any:
        """What the handler takes: a message, or an iterator of messages."""
        messages = RequestMessages(
            wire,
            receiver=self._receiver,
            memory=memory,
            max_request_bytes=self._max_request_bytes,
            parse=handler.request_deserializer,
        )
        return messages if handler.request_streaming else messages.only()

    @contextmanager
    def _guarded(self, method: str, context: grpc.ServicerContext) -> Iterator[HeldMemory]:
        # What a call took is given back before its status is sent: a caller may come again at once.
        try:
            with self._slot(), memory_of_call(context, self.budget) as memory:
                yield memory
        except Exception as error:
            _abort(context, method, error)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        limit = self._max_concurrent_requests
        with self._lock:
            if self.in_progress >= limit:
                raise BusyError(f"the service handles {limit} requests at a time")
            self.in_progress += 1
        try:
            yield
        finally:
            with self._lock:
                self.in_progress -= 1


def _abort(context: grpc.ServicerContext, method: str, error: Exception) -> NoReturn:
    if context.code() is not None:
        raise error  # the handler has aborted the call itself
    if not context.is_active():
        # The client left, or its deadline passed; whatever that made the handler raise is no error.
        context.abort(grpc.StatusCode.CANCELLED, "the call was cancelled")
    if not isinstance(error, DistillError):
        _log_internal_error(method, error)
    context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort returned")


def _log_internal_error(method: str, error: Exception) -> None:
    """Log where an unexpected error happened; its text only at debug level.

    The text of an exception may hold prompt text, and a full traceback holds paths.
    """
    frames = traceback.extract_tb(error.__traceback__)
    location = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-8:]))
    _LOGGER.error("%s failed: %s at %s", method, type(error).__name__, location)
    _LOGGER.debug("%s failed", method, exc_info=error)
