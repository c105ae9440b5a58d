"""Exceptions to gRPC statuses, in one place."""

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from distill.errors import BusyError, DistillError

_LOGGER = logging.getLogger(__name__)

ERROR_DOMAIN = "distill"
"""google.rpc.ErrorInfo.domain of every error."""

MAX_TEXT_BYTES = 500
"""Longest text of a status. Errors repeat what they got, which can be as long as a request; a
trailer beyond 8 KiB, with texts in it several times and escaped, may be dropped with its status."""

# Health answers whatever else the service is doing, and its handlers carry gRPC attributes that a
# wrapper would hide.
_EXEMPT_SERVICE = "/grpc.health.v1.Health/"

Handler = Callable[[Any, grpc.ServicerContext], Any]


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


class ErrorInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Turns what a servicer raises into a status, and bounds the requests in progress.

    The bound leaves threads of the server's pool free, so health checks always find one.
    """

    def __init__(self, max_concurrent_requests: int) -> None:
        self._max_concurrent_requests = max_concurrent_requests
        self._lock = threading.Lock()
        self.in_progress = 0
        """Requests that are being answered; health checks do not count."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(_EXEMPT_SERVICE):
            return handler
        if handler.request_streaming and handler.response_streaming:
            make, behavior = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        elif handler.request_streaming:
            make, behavior = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        elif handler.response_streaming:
            make, behavior = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            make, behavior = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        wrap = self._streaming if handler.response_streaming else self._unary
        return make(
            wrap(behavior, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, behavior: Handler, method: str) -> Handler:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self._guarded(method, context):
                return behavior(request, context)

        return handle

    def _streaming(self, behavior: Handler, method: str) -> Handler:
        # A generator: nothing is taken before gRPC starts to iterate, and its `finally` runs when
        # gRPC drops it, so a slot is always given back.
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._guarded(method, context):
                yield from behavior(request, context)

        return handle

    @contextmanager
    def _guarded(self, method: str, context: grpc.ServicerContext) -> Iterator[None]:
        limit = self._max_concurrent_requests
        with self._lock:
            has_room = self.in_progress < limit
            if has_room:
                self.in_progress += 1
        if not has_room:
            _abort(context, method, BusyError(f"the service handles {limit} requests at a time"))
        try:
            yield
        except Exception as error:
            _abort(context, method, error)
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
