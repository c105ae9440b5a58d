"""A server in this process: health, drain, addresses, options."""

import argparse
import socket
import threading
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from distill.limits import MAX_HELD_BYTES, MAX_MESSAGE_BYTES
from distill.rpc.options import ServerOptions, add_server_arguments, parse_server_options
from distill.rpc.server import RunningServer, Service, StartError
from tests.support.waiting import wait_until

NAME = "test.Echo"


class Echo:
    """A service whose only method waits until it is told to answer."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        """Counts the requests that are inside."""
        self.release = threading.Event()
        self.closed = 0
        self.grace_seconds: float | None = None

    def close(self, grace_seconds: float) -> None:
        self.closed += 1
        self.grace_seconds = grace_seconds

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: ARG002
        self.started.release()
        assert self.release.wait(20)
        return request

    def register(self, server: grpc.Server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(self.answer)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(NAME, {"Answer": handler}),)
        )

    def service(self) -> Service:
        return Service(full_name=NAME, description="echo", register=self.register, close=self.close)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def server(echo: Echo) -> Iterator[RunningServer]:
    server = RunningServer(host="127.0.0.1", port=0, max_concurrent_requests=2)
    server.start(echo.service())
    yield server
    echo.release.set()
    server.stop(0)


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def health_of(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status


def test_health_is_reported_for_the_server_and_the_service(channel: grpc.Channel) -> None:
    for service in ("", NAME):
        assert health_of(channel, service) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health_of(channel, "test.Other")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_answers_while_every_request_slot_is_taken(
    echo: Echo, channel: grpc.Channel
) -> None:
    answer = channel.unary_unary(f"/{NAME}/Answer")
    calls = [answer.future(b"x", timeout=20) for _ in range(2)]
    for _ in calls:
        assert echo.started.acquire(timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        answer(b"x", timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert health_of(channel, NAME) == health_pb2.HealthCheckResponse.SERVING
    echo.release.set()
    assert [call.result() for call in calls] == [b"x", b"x"]


def test_a_drain_reports_not_serving_finishes_requests_and_then_closes(
    echo: Echo,
    server: RunningServer,
    channel: grpc.Channel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "distill.rpc.server")
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service=NAME), timeout=20
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    call = channel.unary_unary(f"/{NAME}/Answer").future(b"in flight", timeout=20)
    assert echo.started.acquire(timeout=20)
    stopping = threading.Thread(target=server.stop, args=(20,))
    stopping.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    assert echo.closed == 0
    wait_until(lambda: "waiting up to 20 s for 1 request(s)" in caplog.text)
    echo.release.set()
    assert call.result() == b"in flight"
    stopping.join(20)
    assert not stopping.is_alive()
    assert echo.closed == 1
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{NAME}/Answer")(b"late", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_busy_port_is_named_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as caught:
            RunningServer(host="127.0.0.1", port=port)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: the port is in use; "
        "--listen takes another, or port 0 for a free one"
    )
    assert capfd.readouterr().err == ""


def test_two_servers_never_share_a_port(server: RunningServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(StartError, match="the port is in use"):
        RunningServer(host="127.0.0.1", port=port)


def test_a_message_that_is_too_large_arrives_and_is_refused_with_its_limit(
    echo: Echo, server: RunningServer
) -> None:
    echo.release.set()
    unbounded = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.address, options=unbounded) as channel:
        answer = channel.unary_unary(f"/{NAME}/Answer")
        assert len(answer(bytes(MAX_MESSAGE_BYTES), timeout=20)) == MAX_MESSAGE_BYTES
        with pytest.raises(grpc.RpcError) as caught:
            answer(bytes(MAX_MESSAGE_BYTES + 1), timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert (info.reason, info.metadata["limit"]) == ("LIMIT_EXCEEDED", str(MAX_MESSAGE_BYTES))


def described_services(server: RunningServer) -> set[str]:
    """What the server says by reflection, v1alpha, which every tool speaks."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
    return {service.name for service in answer.list_services_response.service}


def test_reflection_names_every_service_also_when_every_slot_is_taken(echo: Echo) -> None:
    server = RunningServer(host="127.0.0.1", port=0, max_concurrent_requests=1, has_reflection=True)
    server.start(echo.service())
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{NAME}/Answer").future(b"x", timeout=20)
        assert echo.started.acquire(timeout=20)
        assert described_services(server) == {
            NAME,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        echo.release.set()
        assert call.result() == b"x"
    server.stop(0)


def test_without_the_flag_there_is_no_reflection(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        described_services(server)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def options_of(*arguments: str) -> ServerOptions:
    parser = argparse.ArgumentParser(prog="service")
    add_server_arguments(parser, default_port=50051)
    return parse_server_options(parser, parser.parse_args(arguments))


def test_the_defaults_serve_the_embedded_model_on_loopback() -> None:
    options = options_of()
    assert (options.model, options.host, options.port) == ("smollm2-135m", "127.0.0.1", 50051)
    assert options.dtype == "auto"
    assert options.ready_file is None
    assert not options.exit_when_stdin_closes
    assert options.max_held_bytes == MAX_HELD_BYTES
    assert not options.reflection


@pytest.mark.parametrize(
    ("text", "byte_count"),
    [("1048576", 1 << 20), ("2048KiB", 2 << 20), ("512MiB", 512 << 20), ("3GiB", 3 << 30)],
)
def test_bytes_are_given_as_a_number_or_with_a_unit(text: str, byte_count: int) -> None:
    assert options_of("--max-held-bytes", text).max_held_bytes == byte_count


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:65535", "[::1]:80", "127.9.9.9:1"])
def test_loopback_addresses_are_accepted(listen: str) -> None:
    assert options_of("--listen", listen).port == int(listen.rpartition(":")[2])


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.168.1.5:1", "example.org:1"])
def test_an_address_beyond_loopback_needs_a_flag(
    listen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        options_of("--listen", listen)
    assert caught.value.code == 2
    assert "--insecure-bind" in capsys.readouterr().err
    assert options_of("--listen", listen, "--insecure-bind").port == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "50051"),
        ("--listen", "127.0.0.1:"),
        ("--listen", "127.0.0.1:99999"),
        ("--listen", ":1"),
        ("--max-top-k", "0"),
        ("--max-sequence-tokens", "x"),
        ("--dtype", "float16"),
        ("--grace-seconds", "-1"),
        ("--grace-seconds", "nan"),
        ("--max-held-bytes", "2"),
        ("--max-held-bytes", "0.5GiB"),
        ("--max-held-bytes", "-1GiB"),
        ("--max-held-bytes", "2GB"),
        ("--max-held-bytes", "MiB"),
    ],
)
def test_a_bad_argument_is_a_usage_error(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        options_of(*arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("in_progress", [True, False])
def test_the_service_closes_in_what_the_requests_leave_of_the_grace(
    echo: Echo, server: RunningServer, channel: grpc.Channel, in_progress: bool
) -> None:
    if in_progress:
        call = channel.unary_unary(f"/{NAME}/Answer").future(b"never answered", timeout=20)
        assert echo.started.acquire(timeout=20)
    server.stop(0.2 if in_progress else 20)
    assert echo.grace_seconds is not None
    if in_progress:
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert echo.grace_seconds == 0
    else:
        assert 10 < echo.grace_seconds <= 20
