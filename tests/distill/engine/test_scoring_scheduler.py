"""The scheduler of scoring: calls, waits, fairness, lagging readers."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from distill.engine.device_queue import DeviceQueue
from distill.engine.scoring_scheduler import ScoringScheduler
from tests.distill.engine.fake_scoring import (
    WEIGHTS,
    FakeScorer,
    Scheduling,
    Stop,
    job,
    marks,
    rows,
    rows_of,
    wait_until_resting,
)
from tests.distill.engine.gate import Gate
from tests.support.waiting import WAIT_SECONDS, wait_until

LONG_SECONDS = 10 * WAIT_SECONDS
"""A wait that no test survives."""


def test_concurrent_streams_share_a_call_and_each_gets_its_own_chunks(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    gate = Gate(queue)
    jobs = [[job(3, mark=1), job(2, row=1, mark=2)], [job(4, mark=3)]]
    streams = [scheduler.score(own, WEIGHTS[0]) for own in jobs]
    gate.open()
    for stream, own in zip(streams, jobs, strict=True):
        assert rows(stream) == rows_of(*own)
    assert marks(fake_scorer) == [[1, 2, 3]]
    assert scheduler.call_count == 1


def test_streams_that_are_given_the_same_jobs_get_a_copy_each(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    gate = Gate(queue)
    jobs = [job(3, mark=1)]
    streams = [scheduler.score(jobs, WEIGHTS[0]) for _ in range(3)]
    gate.open()
    for stream in streams:
        assert rows(stream) == rows_of(*jobs)


def test_a_stream_ends_with_its_own_last_row_and_not_with_the_call(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    stop = Stop(fake_scorer, 2, WAIT_SECONDS)
    gate = Gate(queue)
    first = scheduler.score([job(2, mark=1)], WEIGHTS[0])
    second = scheduler.score([job(2, mark=2)], WEIGHTS[0])
    gate.open()
    stop.wait()
    assert rows(first) == [(0, 1, 1), (0, 2, 1)]
    stop.open()
    assert len(list(second)) == 2
    assert marks(fake_scorer) == [[1, 2]]


def test_weights_are_never_mixed(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(20)
    generator = random.Random(0)
    jobs = [
        [job(generator.randint(1, 9), row=row, mark=stream) for row in range(4)]
        for stream in range(12)
    ]
    gate = Gate(queue)
    streams = [
        scheduler.score(own, WEIGHTS[index % 3], in_flight_limit=100)
        for index, own in enumerate(jobs)
    ]
    gate.open()
    for stream, own in zip(streams, jobs, strict=True):
        assert rows(stream) == rows_of(*own)
    for weights, members in fake_scorer.calls:
        assert all(WEIGHTS[mark % 3] is weights for mark in members)
    assert len(fake_scorer.calls) < sum(map(len, jobs))


def test_the_task_lives_as_long_as_there_are_streams_and_takes_turns_with_others(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    for _ in range(2):
        assert not queue._unfinished
        gate = Gate(queue)
        stream = scheduler.score([job(50)], WEIGHTS[0], in_flight_limit=100)
        task = scheduler._task
        other = queue.submit(lambda task=task: task.pieces_run)
        gate.open()
        # A training task that came second waits for one piece, and so does scoring for it.
        assert other.result(WAIT_SECONDS) == 1
        assert len(list(stream)) == 50
        wait_until(lambda: not queue._unfinished)
        assert task.pieces_run == 51


def test_no_jobs_are_an_empty_stream(queue: DeviceQueue, scheduling: Scheduling) -> None:
    assert list(scheduling().score([], WEIGHTS[0])) == []
    assert not queue._unfinished


# Waits for streams that may join a call.


def test_a_lone_request_never_waits_for_others(scheduling: Scheduling) -> None:
    scheduler = scheduling(join_wait_seconds=LONG_SECONDS)
    for _ in range(3):
        stream = scheduler.score([job(3)], WEIGHTS[0], timeout_seconds=WAIT_SECONDS)
        assert rows(stream) == rows_of(job(3))


def together(queue: DeviceQueue, scheduler: ScoringScheduler, mark_count: int) -> None:
    """Requests at once, answered."""
    gate = Gate(queue)
    streams = [
        scheduler.score([job(1, mark=mark)], WEIGHTS[0], timeout_seconds=WAIT_SECONDS)
        for mark in range(mark_count)
    ]
    gate.open()
    for stream in streams:
        list(stream)


def test_the_first_to_come_back_waits_for_the_others_and_delays_no_training(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(join_wait_seconds=LONG_SECONDS)
    together(queue, scheduler, 2)
    first = scheduler.score([job(1, mark=10)], WEIGHTS[0])
    wait_until_resting(scheduler)
    assert queue.run(lambda: "trained", timeout_seconds=WAIT_SECONDS) == "trained"
    assert marks(fake_scorer) == [[0, 1]]
    second = scheduler.score([job(1, mark=11)], WEIGHTS[0])
    assert len(list(first)) == len(list(second)) == 1
    assert marks(fake_scorer) == [[0, 1], [10, 11]]


def test_the_wait_for_others_ends(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(join_wait_seconds=0.01)
    together(queue, scheduler, 2)
    assert len(list(scheduler.score([job(1, mark=10)], WEIGHTS[0]))) == 1
    assert marks(fake_scorer) == [[0, 1], [10]]


def test_a_full_call_does_not_wait(queue: DeviceQueue, scheduling: Scheduling) -> None:
    scheduler = scheduling(100, LONG_SECONDS)
    together(queue, scheduler, 2)
    stream = scheduler.score([job(100, mark=10)], WEIGHTS[0], timeout_seconds=WAIT_SECONDS)
    assert len(list(stream)) == 100


def test_a_call_does_not_wait_while_one_under_other_weights_could_run(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling(100, LONG_SECONDS)
    together(queue, scheduler, 3)
    gate = Gate(queue)
    streams = [
        scheduler.score([job(1, mark=10 + index)], WEIGHTS[index], timeout_seconds=WAIT_SECONDS)
        for index in range(2)
    ]
    gate.open()
    for stream in streams:
        assert len(list(stream)) == 1


# Fairness.


def test_a_long_request_delays_a_short_one_by_the_call_under_way(
    fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(100)
    stop = Stop(fake_scorer, 500, WAIT_SECONDS)
    long = scheduler.score(
        [job(10, row=row, mark=row) for row in range(1000)], WEIGHTS[0], in_flight_limit=10**6
    )
    stop.wait()
    short = scheduler.score([job(10, mark=5000)], WEIGHTS[0])
    calls_before = len(fake_scorer.calls)
    stop.open()
    assert len(list(short)) == 10
    (call,) = [index for index, members in enumerate(marks(fake_scorer)) if 5000 in members]
    assert call == calls_before
    long.cancel()


def test_each_stream_gets_as_many_turns_as_another_task(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling(10_000)
    gate = Gate(queue)
    streams = [
        scheduler.score([job(300, mark=mark)], WEIGHTS[0], in_flight_limit=10**6)
        for mark in range(4)
    ]
    task = scheduler._task
    assert task is not None

    def other() -> Iterator[int]:
        for _ in range(50):
            yield task.pieces_run

    turns = queue.stream(other(), in_flight_limit=100)
    gate.open()
    seen = list(turns)
    assert seen[49] - seen[9] == 4 * 40
    for stream in streams:
        assert len(list(stream)) == 300


# Lagging readers.


def test_nothing_is_computed_for_a_reader_that_stalls_and_others_are_not_held_up(
    fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(10)
    stalled_jobs = [job(8, row=row, mark=row) for row in range(3)]
    stalled = scheduler.score(stalled_jobs, WEIGHTS[0], in_flight_limit=4)
    wait_until_resting(scheduler)
    assert fake_scorer.pieces == [0] * 5  # the body and an in-flight limit of rows
    other = scheduler.score([job(9, row=row, mark=7) for row in range(5)], WEIGHTS[0])
    assert len(list(other)) == 45
    wait_until_resting(scheduler)
    assert fake_scorer.pieces.count(0) == 5
    assert fake_scorer.pieces.count(1) == 0
    assert rows([next(stalled)]) == [(0, 1, 0)]
    wait_until(lambda: fake_scorer.pieces.count(0) == 6)
    # When it reads on it gets the rest.
    assert rows(stalled) == rows_of(*stalled_jobs)[1:]


def test_a_call_goes_on_for_those_who_read_it_and_keeps_what_the_stalled_one_got(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(40)
    gate = Gate(queue)
    stalled_jobs = [job(10, row=row, mark=row) for row in range(4)]
    stalled = scheduler.score(stalled_jobs, WEIGHTS[0], in_flight_limit=2)
    reading_jobs = [job(10, row=row, mark=10 + row) for row in range(4)]
    reading = scheduler.score(reading_jobs, WEIGHTS[0], in_flight_limit=2)
    gate.open()
    assert rows(reading) == rows_of(*reading_jobs)
    # Two of its jobs shared the first call; it got no part in a second one.
    assert marks(fake_scorer)[0] == [0, 1, 10, 11]
    assert not {2, 3} & set(fake_scorer.pieces)
    assert rows(stalled) == rows_of(*stalled_jobs)


def test_no_more_than_the_bound_is_kept_for_a_stalled_reader_of_a_shared_call(
    queue: DeviceQueue, fake_scorer: FakeScorer
) -> None:
    chunk_bytes = 20
    scheduler = ScoringScheduler(
        queue,
        fake_scorer,
        token_budget=100,
        join_wait_seconds=0.0,
        most_unread_bytes=6 * chunk_bytes,
    )
    gate = Gate(queue)
    stalled_jobs = [job(20, row=row, mark=row) for row in range(2)]
    stalled = scheduler.score(stalled_jobs, WEIGHTS[0], in_flight_limit=4)
    reading_jobs = [job(20, row=row, mark=10 + row) for row in range(2)]
    reading = scheduler.score(reading_jobs, WEIGHTS[0], in_flight_limit=100)
    gate.open()
    assert rows(reading) == rows_of(*reading_jobs)
    wait_until_resting(scheduler)
    assert marks(fake_scorer) == [[0, 1, 10, 11]]
    assert len(stalled._results) == 6
    assert stalled._unread_bytes == 6 * chunk_bytes
    # When it reads on it gets the rest, each row once and in order.
    assert rows(stalled) == rows_of(*stalled_jobs)
    assert stalled._unread_bytes == 0
    assert marks(fake_scorer)[1:] == [[0, 1]]


# All of it at once.


def test_many_clients_that_read_stall_and_leave_all_get_what_they_are_owed(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling(30, 0.001)

    def client(number: int) -> int:
        generator = random.Random(number)
        complete = 0
        for _ in range(15):
            jobs = [
                job(generator.randint(1, 8), row=row, mark=number)
                for row in range(generator.randint(1, 6))
            ]
            wanted = rows_of(*jobs)
            leaves_after = generator.choice([None, None, 0, 3])
            with scheduler.score(
                jobs,
                WEIGHTS[generator.randrange(2)],
                in_flight_limit=generator.randint(1, 5),
                timeout_seconds=WAIT_SECONDS,
            ) as stream:
                seen = []
                for each in stream:
                    if len(seen) == leaves_after:
                        break
                    seen += rows([each])
                    if generator.random() < 0.05:
                        time.sleep(0.002)
                else:
                    assert seen == wanted
                    complete += 1
                assert seen == wanted[: len(seen)]
        return complete

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(client, range(12))) > 60
    wait_until(lambda: not queue._unfinished)
    assert (scheduler._streams, scheduler._calls, scheduler._task) == ([], [], None)
