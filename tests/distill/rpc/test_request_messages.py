"""Messages that are malformed, too large, or do not come, over a real connection."""

import logging
import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distill.rpc import request_messages
from distill.v1 import scoring_pb2
from tests.distill.rpc.served_methods import KINDS, Server
from tests.support.waiting import WAIT_SECONDS, wait_until

CHUNK = scoring_pb2.TopKChunk(prompt_index=3, first_row=7)
TRUNCATED = CHUNK.SerializeToString()[:-1]
SILENT_SECONDS = 0.1


def parse(content: bytes) -> scoring_pb2.TopKChunk:
    return scoring_pb2.TopKChunk.FromString(content)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(parse=parse)
    yield server
    server.close()


def details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    """ErrorInfo, and the fields of BadRequest."""
    info, fields = error_details_pb2.ErrorInfo(), []
    for detail in rpc_status.from_call(error).details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            fields = [violation.field for violation in bad_request.field_violations]
        else:
            detail.Unpack(info)
    return info, fields


@pytest.mark.parametrize("kind", KINDS)
def test_the_handler_gets_messages_of_its_type(server: Server, kind: str) -> None:
    server.call(kind, CHUNK.SerializeToString(), b"")
    empty = scoring_pb2.TopKChunk()
    assert server.received == ([CHUNK, empty] if kind.startswith("stream") else [CHUNK])


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_bytes_are_the_callers_fault_and_nothing_is_logged(
    server: Server,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(grpc.RpcError) as caught:
        server.call(kind, TRUNCATED)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, fields = details(caught.value)
    assert info.reason == "INVALID_FIELD"
    assert fields == ["request"]
    assert "message 1 of the call is malformed" in caught.value.details()
    captured = capfd.readouterr()
    assert "Traceback" not in caplog.text + captured.out + captured.err
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_a_malformed_message_of_a_stream_is_counted(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.call("stream_unary", b"", b"", TRUNCATED)
    assert "message 3 of the call is malformed" in caught.value.details()


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_beyond_the_limit_is_refused_with_the_limit(
    server: Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_messages, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(grpc.RpcError) as caught:
        server.call(kind, bytes(101))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, _ = details(caught.value)
    assert info.reason == "LIMIT_EXCEEDED"
    assert dict(info.metadata) == {"field": "request", "limit": "100", "value": "101"}


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_a_call_without_its_message_is_refused(server: Server, kind: str) -> None:
    call = server.start_stream(kind, iter(()))
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "before its message" in call.details()


def test_a_second_message_of_a_unary_call_is_not_read(server: Server) -> None:
    call = server.start_stream("unary_unary", iter([CHUNK.SerializeToString(), TRUNCATED]))
    assert call.result() == b"done"
    assert server.received == [CHUNK]


@pytest.fixture
def impatient() -> Iterator[Server]:
    server = Server(1, max_silent_seconds=SILENT_SECONDS)
    yield server
    server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_caller_loses_its_slot_and_is_told_why(impatient: Server, kind: str) -> None:
    ended = threading.Event()

    def messages() -> Iterator[bytes]:
        if kind.startswith("stream"):
            yield b"a"
        assert ended.wait(WAIT_SECONDS)

    call = impatient.start_stream(kind, messages())
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert f"no message came for {SILENT_SECONDS:g} s" in call.details()
    wait_until(lambda: impatient.interceptor.in_progress == 0)
    assert impatient.call(kind)
    ended.set()


def test_silent_callers_take_no_thread_for_good(impatient: Server) -> None:
    """More of them than there are threads, and none of them goes away by itself."""
    ended = threading.Event()

    def silence() -> Iterator[bytes]:
        assert ended.wait(WAIT_SECONDS)
        yield b""

    for _ in range(12):
        call = impatient.start_stream("stream_unary", silence())
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: impatient.interceptor.in_progress == 0)
    assert impatient.call("stream_unary", b"a", b"b") == [b"done"]
    ended.set()


def test_a_slow_handler_is_no_silent_caller() -> None:
    def parse_slowly(content: bytes) -> bytes:
        time.sleep(3 * SILENT_SECONDS)
        return content

    server = Server(1, parse=parse_slowly, max_silent_seconds=SILENT_SECONDS)
    assert server.call("stream_unary", b"a", b"b") == [b"done"]
    server.close()
