"""The device queue: turns, in-flight limits, cancellation, errors and drain."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from distill.engine.device_queue import DeviceQueue, Rest
from distill.errors import DeadlineError, UnavailableError
from tests.distill.engine.gate import Gate
from tests.support.waiting import WAIT_SECONDS, wait_until


def test_results_come_in_order_and_pieces_without_a_result_are_left_out(queue: DeviceQueue) -> None:
    stream = queue.stream(value if value % 3 else None for value in range(20))
    assert list(stream) == [value for value in range(20) if value % 3]
    assert stream.pieces_run == queue.pieces_run == 20


def test_all_pieces_run_on_one_thread(queue: DeviceQueue) -> None:
    def thread_ids() -> Iterator[int]:
        for _ in range(5):
            yield threading.get_ident()

    with ThreadPoolExecutor(4) as pool:
        seen = set(pool.map(lambda _: tuple(queue.stream(thread_ids())), range(8)))
    assert len(set().union(*seen)) == 1
    assert threading.get_ident() not in set().union(*seen)


def test_streams_take_turns(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    order: list[str] = []

    def pieces(name: str) -> Iterator[int]:
        for index in range(3):
            order.append(name)
            yield index

    streams = [queue.stream(pieces(name)) for name in "abc"]
    gate.open()
    for stream in streams:
        assert list(stream) == [0, 1, 2]
    assert "".join(order) == "abcabcabc"


def test_a_task_gets_turns_in_proportion_to_its_weight_and_none_starves(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    order: list[str] = []

    def pieces(name: str) -> Iterator[None]:
        for _ in range(400):
            order.append(name)
            yield None

    streams = {name: queue.stream(pieces(name)) for name in "abc"}
    streams["a"].weight = 4
    gate.open()
    for stream in streams.values():
        assert list(stream) == []
    counts = {name: order[:300].count(name) for name in "abc"}
    assert counts == {"a": 200, "b": 50, "c": 50}
    assert "aaaaa" not in "".join(order[:300])


def test_a_task_that_rested_is_not_owed_the_turns_of_others(queue: DeviceQueue) -> None:
    order: list[str] = []

    def pieces(name: str, rest: bool) -> Iterator[Rest | None]:
        if rest:
            yield Rest(seconds=None)
        for _ in range(50):
            order.append(name)
            yield None

    rested = queue.stream(pieces("r", rest=True))
    wait_until(lambda: rested._state is rested._state.RESTING)
    assert list(queue.stream(pieces("a", rest=False))) == []
    gate = Gate(queue)
    rested.wake()
    other = queue.stream(pieces("b", rest=False))
    gate.open()
    assert list(rested) == list(other) == []
    assert "".join(order[50:]) in ("rb" * 50, "br" * 50)


def test_a_short_task_waits_for_single_pieces_of_a_long_one(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    long = queue.stream(iter(range(1000)), in_flight_limit=1000)
    short = queue.submit(lambda: long.pieces_run)
    gate.open()
    assert short.result(WAIT_SECONDS) == 1
    long.cancel()


def test_a_lagging_consumer_parks_its_task_and_no_other(queue: DeviceQueue) -> None:
    stream = queue.stream(iter(range(100)), in_flight_limit=4)
    wait_until(lambda: stream.pieces_run == 4)
    # The worker is free: what is queued now gets its turn, and the parked task gets none.
    assert list(queue.stream(iter(range(10)))) == list(range(10))
    assert stream.pieces_run == 4
    assert next(stream) == 0
    wait_until(lambda: stream.pieces_run == 5)
    assert list(stream) == list(range(1, 100))


def test_a_cancelled_stream_runs_no_further_piece(queue: DeviceQueue) -> None:
    closed = threading.Event()

    def pieces() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    stream = queue.stream(pieces(), in_flight_limit=1000)
    gate = Gate(queue)
    pieces_before = stream.pieces_run
    assert 0 < pieces_before < 1000
    stream.cancel()
    gate.open()
    assert closed.wait(WAIT_SECONDS)
    queue.run(lambda: None)
    assert stream.pieces_run == pieces_before
    with pytest.raises(CancelledError):
        next(stream)


def test_a_cancelled_parked_stream_is_closed_on_the_worker(queue: DeviceQueue) -> None:
    closed_on: list[int] = []

    def pieces() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed_on.append(threading.get_ident())

    with queue.stream(pieces(), in_flight_limit=1) as stream:
        wait_until(lambda: stream.pieces_run == 1)
    wait_until(lambda: bool(closed_on))
    assert closed_on == [queue.run(threading.get_ident)]


def test_a_resting_task_costs_no_turn_until_it_is_woken(queue: DeviceQueue) -> None:
    turns: list[str] = []

    def pieces() -> Iterator[Rest | str]:
        turns.append("before")
        yield Rest(seconds=None)
        turns.append("after")
        yield "result"

    stream = queue.stream(pieces())
    wait_until(lambda: stream._state is stream._state.RESTING)
    assert [queue.run(lambda: None) for _ in range(5)] == [None] * 5
    assert turns == ["before"]
    assert queue.pieces_run == 5
    stream.wake()
    assert list(stream) == ["result"]
    assert stream.pieces_run == 1


def test_a_rest_ends_with_its_time_also_while_others_work(queue: DeviceQueue) -> None:
    def pieces() -> Iterator[Rest | float]:
        yield Rest(seconds=0.02)
        yield time.monotonic()

    def work() -> Iterator[None]:
        while not rested.is_set():
            time.sleep(0.001)
            yield None

    rested = threading.Event()
    for busy in (False, True):
        others = queue.stream(work()) if busy else None
        started = time.monotonic()
        (ended,) = queue.stream(pieces())
        assert ended - started >= 0.02
        if others is not None:
            assert others.pieces_run > 1
            rested.set()


def test_a_task_woken_before_it_rests_does_not_rest(queue: DeviceQueue) -> None:
    def pieces() -> Iterator[Rest | str]:
        stream.wake()
        yield Rest(seconds=None)
        yield "result"

    gate = Gate(queue)
    stream = queue.stream(pieces())
    gate.open()
    assert next(stream) == "result"


def test_a_cancelled_resting_task_is_closed(queue: DeviceQueue) -> None:
    closed = threading.Event()

    def pieces() -> Iterator[Rest]:
        try:
            yield Rest(seconds=None)
        finally:
            closed.set()

    stream = queue.stream(pieces())
    wait_until(lambda: stream._state is stream._state.RESTING)
    stream.cancel()
    assert closed.wait(WAIT_SECONDS)
    wait_until(lambda: not queue._unfinished)


def test_a_task_that_was_cancelled_before_it_rests_is_closed(queue: DeviceQueue) -> None:
    closed = threading.Event()

    def pieces() -> Iterator[Rest]:
        try:
            stream.cancel()
            yield Rest(seconds=None)
        finally:
            closed.set()

    gate = Gate(queue)
    stream = queue.stream(pieces())
    gate.open()
    assert closed.wait(WAIT_SECONDS)


def test_cancel_wakes_a_waiting_consumer(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    stream = queue.stream(iter(range(3)))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, stream)
        time.sleep(0.05)
        assert not waiting.done()
        stream.cancel()
        with pytest.raises(CancelledError):
            waiting.result(WAIT_SECONDS)
    gate.open()


def test_an_error_reaches_its_own_consumer_after_the_earlier_results(queue: DeviceQueue) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken piece")

    def broken() -> None:
        raise ValueError("broken task")

    stream = queue.stream(failing())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken piece"):
        next(stream)
    with pytest.raises(ValueError, match="broken task"):
        queue.run(broken)
    assert queue.run(lambda: "still working") == "still working"


def test_run_returns_what_the_function_returned_even_none(queue: DeviceQueue) -> None:
    assert queue.run(lambda: 41 + 1) == 42
    assert queue.run(lambda: None) is None


def test_a_piece_that_did_not_start_in_time_never_runs(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    ran: list[int] = []
    with pytest.raises(DeadlineError):
        queue.run(lambda: ran.append(1), timeout_seconds=0.02)
    gate.open()
    queue.run(lambda: None)
    assert ran == []


def test_a_piece_that_started_in_time_is_waited_for(queue: DeviceQueue) -> None:
    def slow() -> str:
        time.sleep(0.2)
        return "done"

    assert queue.run(slow, timeout_seconds=0.1) == "done"


def test_a_stream_past_its_time_raises_and_is_cancelled(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    stream = queue.stream(iter(range(5)), timeout_seconds=0.02)
    with pytest.raises(DeadlineError):
        next(stream)
    gate.open()
    queue.run(lambda: None)
    assert stream.pieces_run == 0


def test_a_cancelled_future_never_runs(queue: DeviceQueue) -> None:
    gate = Gate(queue)
    ran: list[int] = []
    future = queue.submit(lambda: ran.append(1))
    assert future.cancel()
    gate.open()
    queue.run(lambda: None)
    assert ran == []


def test_close_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    queue = DeviceQueue()
    gate = Gate(queue)
    future = queue.submit(lambda: "accepted")
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(queue.close)
        wait_until(lambda: queue._closing)
        with pytest.raises(UnavailableError):
            queue.run(lambda: "refused")
        assert not closing.done()
        gate.open()
        closing.result(WAIT_SECONDS)
    assert future.result(0) == "accepted"


def test_close_cancels_what_its_grace_does_not_cover() -> None:
    queue = DeviceQueue()
    abandoned = queue.stream(iter(range(100)), in_flight_limit=1)
    queue.close(grace_seconds=0.05)
    with pytest.raises(CancelledError):
        list(abandoned)


def test_a_piece_must_not_wait_for_another(queue: DeviceQueue) -> None:
    with pytest.raises(RuntimeError, match="must not wait"):
        queue.run(lambda: queue.run(lambda: None))
