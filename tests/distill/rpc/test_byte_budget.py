"""What calls hold of the budget of a service, over a real connection, for all kinds of RPC."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distill.errors import CallEndedError, HeldBytesError, LimitExceededError
from distill.limits import MESSAGE_OVERHEAD_BYTES
from distill.rpc.byte_budget import ByteBudget, HeldMemory, held_memory, memory_of_call
from distill.rpc.request_guard import RequestGuard
from tests.distill.rpc.served_methods import KINDS, Server, raising
from tests.support.waiting import WAIT_SECONDS, wait_until

LIMIT = 10_000


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(max_held_bytes=LIMIT)
    yield server
    server.close()


class Hold:
    """A behaviour that holds its call until it is told to go on."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, context: grpc.ServicerContext) -> None:  # noqa: ARG002
        self.started.release()
        assert self.release.wait(WAIT_SECONDS)


def messages_of(kind: str, byte_count: int) -> list[bytes]:
    """A request of so many bytes: three messages where the method takes several."""
    if kind.startswith("unary"):
        return [bytes(byte_count)]
    return [bytes(byte_count - 2), b"", bytes(2)]


def reason(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason


def says_when_to_retry(error: grpc.RpcError) -> bool:
    details = rpc_status.from_call(error).details
    return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)


def test_a_budget_holds_no_more_than_its_limit() -> None:
    budget = ByteBudget(10)
    budget.take(6)
    with pytest.raises(HeldBytesError) as caught:
        budget.take(5)
    assert (caught.value.limit, caught.value.value) == (10, 11)
    assert budget.held == 6
    budget.take(4)
    budget.give_back(6)
    budget.take(6)
    assert budget.held == 10


def test_threads_never_lose_a_byte() -> None:
    budget = ByteBudget(1 << 30)

    def work() -> None:
        memory = HeldMemory(budget)
        for _ in range(2000):
            memory.add(3)
        memory.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.held == 0


def test_a_call_that_never_fits_is_over_a_limit_and_not_told_to_retry() -> None:
    budget = ByteBudget(10)
    memory = HeldMemory(budget)
    memory.add(8)
    with pytest.raises(LimitExceededError, match="at most 10 bytes held, got 11"):
        memory.add(3)
    assert budget.held == 8
    other = HeldMemory(budget)
    with pytest.raises(HeldBytesError):
        other.add(3)
    memory.release()
    other.add(3)
    assert budget.held == 3


def test_nothing_is_held_after_the_call() -> None:
    budget = ByteBudget(10)
    context = SimpleNamespace()  # without a hash, as the stand-ins of other tests are
    with memory_of_call(context, budget) as memory:
        held_memory(context).add(4)
        assert budget.held == memory.byte_count == 4
    assert budget.held == 0
    with pytest.raises(CallEndedError):
        memory.add(1)
    with pytest.raises(LookupError):
        held_memory(context)
    assert budget.held == 0


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_held_with_their_overhead_while_the_call_lasts(
    server: Server, kind: str
) -> None:
    server.behaviour = hold = Hold()
    messages = messages_of(kind, 1000)
    call = server.start_call(kind, *messages)
    assert hold.started.acquire(timeout=WAIT_SECONDS)
    budget = server.interceptor.budget
    assert budget.held == 1000 + MESSAGE_OVERHEAD_BYTES * len(messages)
    hold.release.set()
    list(call) if kind.endswith("stream") else call.result()
    wait_until(lambda: budget.held == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_servicer_fetches_is_held_with_its_call(server: Server, kind: str) -> None:
    held = []

    def fetch(context: grpc.ServicerContext) -> None:
        before = server.interceptor.budget.held
        held_memory(context).add(100)
        held.append(server.interceptor.budget.held - before)

    server.behaviour = fetch
    server.call(kind)
    assert held == [100]
    wait_until(lambda: server.interceptor.budget.held == 0)

    server.behaviour = lambda context: held_memory(context).add(LIMIT)
    with pytest.raises(grpc.RpcError) as caught:
        server.call(kind)
    assert reason(caught.value) == "LIMIT_EXCEEDED"
    wait_until(lambda: server.interceptor.budget.held == 0)


def end_by_error(server: Server, kind: str) -> None:
    server.behaviour = raising(RuntimeError("x"))
    with pytest.raises(grpc.RpcError):
        server.call(kind, *messages_of(kind, 1000))


def end_by_abort(server: Server, kind: str) -> None:
    server.behaviour = lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "x")
    with pytest.raises(grpc.RpcError):
        server.call(kind, *messages_of(kind, 1000))


def end_by_leaving(server: Server, kind: str) -> None:
    server.behaviour = hold = Hold()
    call = server.start_call(kind, *messages_of(kind, 1000))
    assert hold.started.acquire(timeout=WAIT_SECONDS)
    assert server.interceptor.budget.held > 1000
    call.cancel()
    hold.release.set()


def end_by_leaving_before_the_end_of_the_request(server: Server, kind: str) -> None:
    ended = threading.Event()

    def messages() -> Iterator[bytes]:
        if kind.startswith("stream"):
            yield bytes(1000)
        assert ended.wait(WAIT_SECONDS)

    call = server.start_stream(kind, messages())
    wait_until(lambda: server.interceptor.in_progress == 1)
    if kind.startswith("stream"):
        wait_until(lambda: server.interceptor.budget.held > 1000)
    call.cancel()
    ended.set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "end",
    [
        end_by_error,
        end_by_abort,
        end_by_leaving,
        end_by_leaving_before_the_end_of_the_request,
    ],
)
def test_whichever_way_a_call_ends_it_holds_nothing_and_no_slot(
    server: Server, kind: str, end: Callable[[Server, str], None]
) -> None:
    end(server, kind)
    wait_until(lambda: server.interceptor.in_progress == 0)
    assert server.interceptor.budget.held == 0
    server.behaviour = lambda context: None  # noqa: ARG005
    server.call(kind, *messages_of(kind, LIMIT - 3 * MESSAGE_OVERHEAD_BYTES))


def test_a_response_that_is_dropped_in_the_middle_holds_nothing() -> None:
    interceptor = RequestGuard(1, max_held_bytes=LIMIT)
    answers = grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request, request]))
    wrapped = interceptor.intercept_service(
        lambda _: answers, SimpleNamespace(method="/test.Service/Answer")
    )
    responses = wrapped.stream_stream(iter([bytes(1000)]), SimpleNamespace())
    assert interceptor.budget.held == 0
    next(responses)
    assert interceptor.budget.held > 1000
    responses.close()
    assert (interceptor.budget.held, interceptor.in_progress) == (0, 0)
    interceptor.close()


@pytest.mark.parametrize("kind", KINDS)
def test_beyond_the_budget_a_request_is_refused_for_now(server: Server, kind: str) -> None:
    server.behaviour = hold = Hold()
    first = server.start_call("unary_unary", bytes(LIMIT // 2))
    assert hold.started.acquire(timeout=WAIT_SECONDS)
    held = server.interceptor.budget.held
    with pytest.raises(grpc.RpcError) as caught:
        server.call(kind, *messages_of(kind, LIMIT // 2))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(caught.value) == "TOO_MANY_BYTES"
    assert says_when_to_retry(caught.value)
    assert server.interceptor.budget.held == held
    hold.release.set()
    assert first.result() == b"done"
    wait_until(lambda: server.interceptor.in_progress == 0)
    server.call(kind, *messages_of(kind, LIMIT // 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_is_larger_than_the_budget_is_not_told_to_retry(
    server: Server, kind: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.call(kind, *messages_of(kind, LIMIT))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(caught.value) == "LIMIT_EXCEEDED"
    assert not says_when_to_retry(caught.value)
    assert f"request: must be at most {LIMIT} bytes, got" in caught.value.details()


def test_empty_messages_count() -> None:
    server = Server(max_held_bytes=LIMIT)
    fitting = LIMIT // MESSAGE_OVERHEAD_BYTES
    server.call("stream_unary", *[b""] * fitting)
    with pytest.raises(grpc.RpcError) as caught:
        server.call("stream_unary", *[b""] * (fitting + 1))
    assert reason(caught.value) == "LIMIT_EXCEEDED"
    server.close()
