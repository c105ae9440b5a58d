"""What callers see of what stands before every method, over a real connection."""

import logging
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distill import errors
from tests.distill.rpc.served_methods import KINDS, SERVICE, Server, raising

CANARY = "canary-of-a-prompt"


def details(call: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    """ErrorInfo, and the fields of BadRequest."""
    info, fields = error_details_pb2.ErrorInfo(), []
    for detail in rpc_status.from_call(call).details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            fields = [violation.field for violation in bad_request.field_violations]
        elif not detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            assert detail.Unpack(info)
    return info, fields


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_field_is_named(server: Server, kind: str) -> None:
    server.behaviour = raising(errors.InvalidFieldError("top_k", "must be in [1, 9], got 0"))
    with pytest.raises(grpc.RpcError) as caught:
        server.call(kind)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "top_k: must be in [1, 9], got 0"
    info, fields = details(caught.value)
    assert (info.reason, info.domain) == ("INVALID_FIELD", "distill")
    assert fields == ["top_k"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unexpected_error_tells_neither_caller_nor_log_what_it_held(
    server: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.behaviour = raising(RuntimeError(f"{CANARY} in /secret/path"))
    with caplog.at_level(logging.INFO), pytest.raises(grpc.RpcError) as caught:
        server.call(kind)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    status = rpc_status.from_call(caught.value)
    assert details(caught.value)[0].reason == "INTERNAL"
    for text in (str(status), caught.value.details(), caplog.text):
        assert CANARY not in text
        assert "/secret" not in text
    # But the log says where to look.
    assert f"/{SERVICE}/{kind} failed: RuntimeError at behaviour:" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_requests_and_answers_pass_through(server: Server, kind: str) -> None:
    assert server.call(kind) == [b"first" if kind.endswith("stream") else b"done"]
    assert server.received == ([b"a", b"b"] if kind.startswith("stream") else [b"a"])


@pytest.mark.parametrize("kind", ["unary_stream", "unary_unary"])
def test_a_cancellation_is_no_error_to_log(
    server: Server, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    started, ended = threading.Event(), threading.Event()

    def wait_for_the_end(context: grpc.ServicerContext) -> None:
        gone = threading.Event()
        context.add_callback(gone.set)
        started.set()
        assert gone.wait(20)
        ended.set()
        raise RuntimeError(CANARY)

    server.behaviour = wait_for_the_end
    with caplog.at_level(logging.INFO):
        call = server.start_call(kind)
        assert started.wait(20)
        call.cancel()
        assert ended.wait(20)
        server.behaviour = lambda context: None  # noqa: ARG005
        server.call("unary_unary")
    assert "failed" not in caplog.text
    assert CANARY not in caplog.text


def test_requests_over_the_bound_are_refused_and_slots_come_back() -> None:
    server = Server(max_concurrent_requests=2)
    release = threading.Event()
    started = threading.Semaphore(0)

    def hold(context: grpc.ServicerContext) -> None:  # noqa: ARG001
        started.release()
        assert release.wait(20)

    server.behaviour = hold
    calls = [server.start_call(kind) for kind in ("unary_unary", "unary_stream")]
    for _ in calls:
        assert started.acquire(timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        server.call("stream_unary")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(caught.value)[0].reason == "TOO_MANY_REQUESTS"
    release.set()
    assert calls[0].result() == b"done"
    assert list(calls[1]) == [b"first"]
    for kind in KINDS:
        server.call(kind)
    server.close()
