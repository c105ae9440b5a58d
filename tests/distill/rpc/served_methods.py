"""A server with one method of every kind, behind the interceptor of the services."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from distill.rpc.request_guard import RequestGuard

SERVICE = "test.Service"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Behaviour = Callable[[grpc.ServicerContext], None]


class Server:
    """Each method calls `behaviour` once it has its messages, after its first response, if any."""

    def __init__(
        self,
        max_concurrent_requests: int = 8,
        *,
        parse: Callable[[bytes], Any] | None = None,
        **bounds: Any,
    ) -> None:
        self.behaviour: Behaviour = lambda context: None  # noqa: ARG005
        self.received: list[Any] = []
        """Messages of all calls."""
        self.interceptor = RequestGuard(max_concurrent_requests, **bounds)
        self._server = grpc.server(ThreadPoolExecutor(8), interceptors=[self.interceptor])
        handlers = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(
                self._stream if kind.endswith("stream") else self._single,
                request_deserializer=parse,
            )
            for kind in KINDS
        }
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def _single(self, request: object, context: grpc.ServicerContext) -> bytes:
        self._read(request)
        self.behaviour(context)
        return b"done"

    def _stream(self, request: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        self._read(request)
        yield b"first"
        self.behaviour(context)

    def _read(self, request: Any) -> None:
        if isinstance(request, Iterator):
            for message in request:
                self.received.append(message)
        else:
            self.received.append(request)

    def start_call(self, kind: str, *messages: bytes) -> Any:
        """Begin a call; a stream sends "a" and "b" and another call "a", unless it is said."""
        method = getattr(self._channel, kind)(f"/{SERVICE}/{kind}")
        messages = messages or (b"a", b"b")
        request = iter(messages) if kind.startswith("stream") else messages[0]
        if kind.endswith("stream"):
            return method(request, timeout=20)
        return method.future(request, timeout=20)

    def call(self, kind: str, *messages: bytes) -> list[bytes]:
        """The responses."""
        call = self.start_call(kind, *messages)
        return list(call) if kind.endswith("stream") else [call.result()]

    def start_stream(self, kind: str, messages: Iterator[bytes]) -> Any:
        """Begin a call whose messages come when they come, or never, whatever the method takes."""
        method = getattr(self._channel, f"stream_{kind.rpartition('_')[2]}")(f"/{SERVICE}/{kind}")
        if kind.endswith("stream"):
            return method(messages, timeout=20)
        return method.future(messages, timeout=20)

    def close(self) -> None:
        self._channel.close()
        self._server.stop(None).wait()
        self.interceptor.close()


def raising(error: Exception) -> Behaviour:
    def behaviour(context: grpc.ServicerContext) -> None:  # noqa: ARG001
        raise error

    return behaviour
