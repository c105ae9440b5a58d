"""The probe tells a serving service from one that is not, from a stranger and from nothing."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from distill.rpc.health_probe import main

SERVICE = "distill.v1.TeacherService"


@pytest.fixture
def servicer() -> health.HealthServicer:
    servicer = health.HealthServicer()
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    return servicer


@pytest.fixture
def address(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_serving_is_success(address: str) -> None:
    assert main([address]) == 0
    assert main([address, "--service", SERVICE]) == 0


@pytest.mark.usefixtures("proxy_for_the_web")
def test_proxy_for_the_web_is_not_asked(address: str) -> None:
    assert main([address]) == 0


def test_draining_is_failure_and_says_so(
    address: str, servicer: health.HealthServicer, capsys: pytest.CaptureFixture[str]
) -> None:
    servicer.enter_graceful_shutdown()
    assert main([address]) == 1
    assert capsys.readouterr().err == f"{address}: the service reports NOT_SERVING\n"


def test_unknown_service_is_failure(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([address, "--service", "distill.v1.NoSuchService"]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err


def test_nobody_listening_is_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main([address]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err


def test_silent_peer_is_failure_within_the_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main([address, "--timeout-seconds", "0.3"]) == 1
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().err
