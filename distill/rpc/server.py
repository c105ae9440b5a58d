"""What both service processes share: start, health, signals, drain.

A service's `main` parses its arguments with `distill.rpc.options` and calls `serve`.
"""

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from distill.errors import ModelError
from distill.files import replace_json
from distill.limits import MAX_HELD_BYTES, MAX_MESSAGE_BYTES
from distill.rpc.options import ServerOptions
from distill.rpc.request_guard import RequestGuard
from distill.rpc.stop_signal import StopSignal

_LOGGER = logging.getLogger(__name__)

_SPARE_THREADS = 8  # beyond the request slots: health checks and refusals

_SILENT_STOP_SECONDS = 0.2
"""The log explains a stop that takes longer."""

_CHANNEL_OPTIONS = (
    # Without it, a second server binds the same port and takes half of the calls.
    ("grpc.so_reuseport", 0),
    # Twice the limit of a message, so that one beyond it arrives and is refused with its reason.
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A frozen peer is seen within 15 s; keepalive_timeout_ms alone takes 60 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # gRPC slows down after two pings without data between them, as in a long computation.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients ping this often. (gRPC silently ignores the name of the option with "recv" in it.)
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


@dataclass(frozen=True, kw_only=True)
class Service:
    """A loaded service, ready to be served."""

    full_name: str
    """Name of the gRPC service, for example "distill.v1.TeacherService"."""

    description: str
    """One line about what is served, for the log: model, parameters, dtype."""

    register: Callable[[grpc.Server], object]
    """Adds the servicer to a server."""

    close: Callable[[float], object]
    """Called once, after the last request. Its argument is the seconds that are left to stop in; it
    must give up what is under way after them."""


class StartError(Exception):
    """The service cannot start; the message is one line for the person who started it."""


class RunningServer:
    """A gRPC server with health, error mapping and the project's channel options.

    The port is bound on construction and answers from `start` on.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        max_concurrent_requests: int = 64,
        max_held_bytes: int = MAX_HELD_BYTES,
        has_reflection: bool = False,
    ) -> None:
        """Bind the port.

        Args:
            host: address to listen on.
            port: 0 picks a free one.
            max_concurrent_requests: requests in progress at a time.
            max_held_bytes: most bytes that they hold together.
            has_reflection: whether the server describes its services to whoever asks.

        Raises:
            StartError: the address cannot be bound.
        """
        self._has_reflection = has_reflection
        self._requests = RequestGuard(max_concurrent_requests, max_held_bytes=max_held_bytes)
        self._server = grpc.server(
            ThreadPoolExecutor(
                max_concurrent_requests + _SPARE_THREADS, thread_name_prefix="request"
            ),
            options=_CHANNEL_OPTIONS,
            interceptors=[self._requests],
        )
        # gRPC would not say why a bind fails, and would write lines of its own.
        _check_can_bind(host, port)
        try:
            bound_port = self._server.add_insecure_port(_join_address(host, port))
        except RuntimeError:
            raise StartError(f"cannot listen on {_join_address(host, port)}") from None
        self.address = _join_address(host, bound_port)
        self._health = health.HealthServicer()
        self._service: Service | None = None

    def start(self, service: Service) -> None:
        """Serve it, and report SERVING."""
        self._service = service
        service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
        if self._has_reflection:
            names = (service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Report NOT_SERVING, refuse new requests, let those in progress finish, then close.

        Args:
            grace_seconds: after this time the remaining requests are cancelled, and what they
                compute is given up.
        """
        end = time.monotonic() + grace_seconds
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(grace_seconds)
        if not stopped.wait(min(_SILENT_STOP_SECONDS, grace_seconds)):
            _LOGGER.info(
                "waiting up to %g s for %d request(s) and for open health watches",
                grace_seconds,
                self._requests.in_progress,
            )
        stopped.wait()
        self._requests.close()
        if self._service is not None:
            self._service.close(max(0.0, end - time.monotonic()))


def serve(
    options: ServerOptions, *, program: str, load: Callable[[ServerOptions], Service]
) -> None:
    """Serve until SIGTERM, SIGINT or, when asked, the end of standard input; then drain.

    Exits the process with code 2 and one line on standard error when the service cannot start.

    Args:
        options: the shared arguments.
        program: name of the command, for that line.
        load: loads the model and builds the service. Called once the port is known to be free.
    """
    stop_signal = StopSignal()
    if options.exit_when_stdin_closes:
        _stop_at_end_of_stdin()
    started = time.monotonic()
    try:
        server = RunningServer(
            host=options.host,
            port=options.port,
            max_concurrent_requests=options.max_concurrent_requests,
            max_held_bytes=options.max_held_bytes,
            has_reflection=options.reflection,
        )
        service = load(options)
    except (StartError, ModelError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    stop_signal.end_start()
    server.start(service)
    if options.ready_file is not None:
        replace_json(options.ready_file, {"address": server.address, "pid": os.getpid()})
    seconds = time.monotonic() - started
    _LOGGER.info(
        "serving %s at %s, started in %.1f s", service.description, server.address, seconds
    )
    _LOGGER.info("stopping: %s; a second signal stops at once", stop_signal.wait())
    server.stop(options.grace_seconds)
    if options.ready_file is not None:
        options.ready_file.unlink(missing_ok=True)
    _LOGGER.info("stopped")


def _stop_at_end_of_stdin() -> None:
    def watch() -> None:
        # Straight from the descriptor: at exit the interpreter would wait for a buffered reader.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin-watch", daemon=True).start()


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_can_bind(host: str, port: int) -> None:
    """Raise StartError, with the reason in one line, where an address cannot be bound."""
    address = _join_address(host, port)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections of an earlier process that linger do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "the port is in use; --listen takes another, or port 0 for a free one"
        else:
            reason = error.strerror or str(error)
        raise StartError(f"cannot listen on {address}: {reason}") from None
