"""The scheduler of scoring: calls, patience, fairness, cancellation, errors, drain."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from distill.engine.device_queue import DeviceQueue
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.errors import DeadlineError, UnavailableError
from distill.rows import Rows
from tests.distill.engine.fake_scoring import WEIGHTS, FakeScorer, Stop, job
from tests.distill.engine.gate import Gate
from tests.support.waiting import WAIT_SECONDS, wait_until

LONG_SECONDS = 10 * WAIT_SECONDS
"""A patience that no test survives."""

Scheduling = Callable[..., ScoringScheduler]


@pytest.fixture
def queue() -> Iterator[DeviceQueue]:
    queue = DeviceQueue()
    yield queue
    queue.close(grace_seconds=WAIT_SECONDS)


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def scheduling(queue: DeviceQueue, scorer: FakeScorer) -> Scheduling:
    def make(token_budget: int = 100, patience_seconds: float = 0.0) -> ScoringScheduler:
        return ScoringScheduler(
            queue, scorer, token_budget=token_budget, patience_seconds=patience_seconds
        )

    return make


def rows(chunks: Iterable[Rows]) -> list[tuple[int, int, int]]:
    """Prompt, position and mark of the chunks."""
    return [(each.prompt_index, each.first_row, int(each.token_ids[0, 0])) for each in chunks]


def rows_of(*jobs: ScoreJob) -> list[tuple[int, int, int]]:
    return [
        (each.prompt_index, position, int(each.token_ids[0]))
        for each in jobs
        for position in range(each.score_from, len(each.token_ids))
    ]


def marks(scorer: FakeScorer) -> list[list[int]]:
    return [marks for _, marks in scorer.calls]


def rest_of(scheduler: ScoringScheduler) -> None:
    """Wait until the scheduler has nothing to do."""
    task = scheduler._task
    assert task is not None
    wait_until(lambda: task._state is task._state.RESTING)


def test_concurrent_streams_share_a_call_and_each_gets_its_own_chunks(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    gate = Gate(queue)
    jobs = [[job(3, mark=1), job(2, row=1, mark=2)], [job(4, mark=3)]]
    streams = [scheduler.score(own, WEIGHTS[0]) for own in jobs]
    gate.open()
    for stream, own in zip(streams, jobs, strict=True):
        assert rows(stream) == rows_of(*own)
    assert marks(scorer) == [[1, 2, 3]]
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
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    stop = Stop(scorer, 2, WAIT_SECONDS)
    gate = Gate(queue)
    first = scheduler.score([job(2, mark=1)], WEIGHTS[0])
    second = scheduler.score([job(2, mark=2)], WEIGHTS[0])
    gate.open()
    stop.wait()
    assert rows(first) == [(0, 1, 1), (0, 2, 1)]
    stop.open()
    assert len(list(second)) == 2
    assert marks(scorer) == [[1, 2]]


def test_weights_are_never_mixed(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(20)
    generator = random.Random(0)
    jobs = [
        [job(generator.randint(1, 9), row=row, mark=stream) for row in range(4)]
        for stream in range(12)
    ]
    gate = Gate(queue)
    streams = [
        scheduler.score(own, WEIGHTS[index % 3], window=100) for index, own in enumerate(jobs)
    ]
    gate.open()
    for stream, own in zip(streams, jobs, strict=True):
        assert rows(stream) == rows_of(*own)
    for weights, members in scorer.calls:
        assert all(WEIGHTS[mark % 3] is weights for mark in members)
    assert len(scorer.calls) < sum(map(len, jobs))


def test_the_task_lives_as_long_as_there_are_streams_and_takes_turns_with_others(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    for _ in range(2):
        assert not queue._unfinished
        gate = Gate(queue)
        stream = scheduler.score([job(50)], WEIGHTS[0], window=100)
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


# Patience.


def test_a_lone_request_never_waits_for_company(scheduling: Scheduling) -> None:
    scheduler = scheduling(patience_seconds=LONG_SECONDS)
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
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(patience_seconds=LONG_SECONDS)
    together(queue, scheduler, 2)
    first = scheduler.score([job(1, mark=10)], WEIGHTS[0])
    rest_of(scheduler)
    assert queue.run(lambda: "trained", timeout_seconds=WAIT_SECONDS) == "trained"
    assert marks(scorer) == [[0, 1]]
    second = scheduler.score([job(1, mark=11)], WEIGHTS[0])
    assert len(list(first)) == len(list(second)) == 1
    assert marks(scorer) == [[0, 1], [10, 11]]


def test_patience_ends(queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling) -> None:
    scheduler = scheduling(patience_seconds=0.01)
    together(queue, scheduler, 2)
    assert len(list(scheduler.score([job(1, mark=10)], WEIGHTS[0]))) == 1
    assert marks(scorer) == [[0, 1], [10]]


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
    scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(100)
    stop = Stop(scorer, 500, WAIT_SECONDS)
    long = scheduler.score(
        [job(10, row=row, mark=row) for row in range(1000)], WEIGHTS[0], window=10**6
    )
    stop.wait()
    short = scheduler.score([job(10, mark=5000)], WEIGHTS[0])
    calls_before = len(scorer.calls)
    stop.open()
    assert len(list(short)) == 10
    (call,) = [index for index, members in enumerate(marks(scorer)) if 5000 in members]
    assert call == calls_before
    long.cancel()


def test_each_stream_gets_as_many_turns_as_another_task(
    queue: DeviceQueue, scheduling: Scheduling
) -> None:
    scheduler = scheduling(10_000)
    gate = Gate(queue)
    streams = [
        scheduler.score([job(300, mark=mark)], WEIGHTS[0], window=10**6) for mark in range(4)
    ]
    task = scheduler._task
    assert task is not None

    def other() -> Iterator[int]:
        for _ in range(50):
            yield task.pieces_run

    turns = queue.stream(other(), window=100)
    gate.open()
    seen = list(turns)
    assert seen[49] - seen[9] == 4 * 40
    for stream in streams:
        assert len(list(stream)) == 300


# Lagging readers.


def test_nothing_is_computed_for_a_reader_that_stalls_and_others_are_not_held_up(
    scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(10)
    stalled_jobs = [job(8, row=row, mark=row) for row in range(3)]
    stalled = scheduler.score(stalled_jobs, WEIGHTS[0], window=4)
    rest_of(scheduler)
    assert scorer.pieces == [0] * 5  # the body and a window of rows
    other = scheduler.score([job(9, row=row, mark=7) for row in range(5)], WEIGHTS[0])
    assert len(list(other)) == 45
    rest_of(scheduler)
    assert scorer.pieces.count(0) == 5
    assert scorer.pieces.count(1) == 0
    assert rows([next(stalled)]) == [(0, 1, 0)]
    wait_until(lambda: scorer.pieces.count(0) == 6)
    # When it reads on it gets the rest.
    assert rows(stalled) == rows_of(*stalled_jobs)[1:]


def test_a_call_goes_on_for_those_who_read_it_and_keeps_what_the_stalled_one_got(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling(40)
    gate = Gate(queue)
    stalled_jobs = [job(10, row=row, mark=row) for row in range(4)]
    stalled = scheduler.score(stalled_jobs, WEIGHTS[0], window=2)
    reading_jobs = [job(10, row=row, mark=10 + row) for row in range(4)]
    reading = scheduler.score(reading_jobs, WEIGHTS[0], window=2)
    gate.open()
    assert rows(reading) == rows_of(*reading_jobs)
    # Two of its jobs shared the first call; it got no part in a second one.
    assert marks(scorer)[0] == [0, 1, 10, 11]
    assert not {2, 3} & set(scorer.pieces)
    assert rows(stalled) == rows_of(*stalled_jobs)


def test_no_more_than_the_bound_is_kept_for_a_stalled_reader_of_a_shared_call(
    queue: DeviceQueue, scorer: FakeScorer
) -> None:
    chunk_bytes = 20
    scheduler = ScoringScheduler(
        queue, scorer, token_budget=100, patience_seconds=0.0, most_kept_bytes=6 * chunk_bytes
    )
    gate = Gate(queue)
    stalled_jobs = [job(20, row=row, mark=row) for row in range(2)]
    stalled = scheduler.score(stalled_jobs, WEIGHTS[0], window=4)
    reading_jobs = [job(20, row=row, mark=10 + row) for row in range(2)]
    reading = scheduler.score(reading_jobs, WEIGHTS[0], window=100)
    gate.open()
    assert rows(reading) == rows_of(*reading_jobs)
    rest_of(scheduler)
    assert marks(scorer) == [[0, 1, 10, 11]]
    assert len(stalled._results) == 6
    assert stalled._kept_bytes == 6 * chunk_bytes
    # When it reads on it gets the rest, each row once and in order.
    assert rows(stalled) == rows_of(*stalled_jobs)
    assert stalled._kept_bytes == 0
    assert marks(scorer)[1:] == [[0, 1]]


# Cancellation and deadlines.


def test_jobs_of_a_cancelled_stream_that_wait_are_never_scored(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    gate = Gate(queue)
    cancelled = scheduler.score([job(3, mark=1)], WEIGHTS[0])
    other = scheduler.score([job(3, mark=2)], WEIGHTS[0])
    cancelled.cancel()
    gate.open()
    assert len(list(other)) == 3
    assert marks(scorer) == [[2]]
    with pytest.raises(CancelledError):
        next(cancelled)


def test_a_call_that_nobody_waits_for_is_closed_before_its_next_piece(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    with scheduler.score([job(50)], WEIGHTS[0]) as stream:
        next(stream)
        rest_of(scheduler)
        pieces_before = len(scorer.pieces)
    wait_until(lambda: not queue._unfinished)
    assert scorer.closed_calls == 1
    assert len(scorer.pieces) == pieces_before


def test_a_cancelled_part_of_a_shared_call_is_skipped_for_itself_alone(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    stop = Stop(scorer, 1, WAIT_SECONDS)
    gate = Gate(queue)
    cancelled = scheduler.score([job(3, mark=1)], WEIGHTS[0])
    other = scheduler.score([job(3, mark=2)], WEIGHTS[0])
    gate.open()
    stop.wait()
    cancelled.cancel()
    stop.open()
    assert rows(other) == rows_of(job(3, mark=2))
    wait_until(lambda: not queue._unfinished)
    assert not cancelled._results


def test_a_cancelled_part_of_a_shared_call_costs_no_further_piece(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    stop = Stop(scorer, 2, WAIT_SECONDS)
    gate = Gate(queue)
    other = scheduler.score([job(3, row=0, mark=1), job(3, row=1, mark=2)], WEIGHTS[0], window=9)
    cancelled = scheduler.score([job(40, mark=3)], WEIGHTS[0])
    last = scheduler.score([job(3, mark=4)], WEIGHTS[0])
    gate.open()
    stop.wait()
    cancelled.cancel()
    stop.open()
    assert len(list(other)) == 6
    assert len(list(last)) == 3
    wait_until(lambda: not queue._unfinished)
    assert marks(scorer) == [[1, 2, 3, 4]]
    assert 3 not in scorer.pieces


def test_cancel_wakes_a_waiting_consumer(queue: DeviceQueue, scheduling: Scheduling) -> None:
    gate = Gate(queue)
    stream = scheduling().score([job(3)], WEIGHTS[0])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, stream)
        wait_until(lambda: bool(stream._changed._waiters))
        stream.cancel()
        with pytest.raises(CancelledError):
            waiting.result(WAIT_SECONDS)
    gate.open()


def test_a_stream_past_its_time_raises_and_is_not_computed(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    gate = Gate(queue)
    stream = scheduling().score([job(3)], WEIGHTS[0], timeout_seconds=0.02)
    with pytest.raises(DeadlineError):
        next(stream)
    gate.open()
    wait_until(lambda: not queue._unfinished)
    assert scorer.calls == []


# Errors.


def test_an_error_reaches_the_streams_of_its_call_and_no_others(
    queue: DeviceQueue, scorer: FakeScorer, scheduling: Scheduling
) -> None:
    def fail(job: ScoreJob) -> None:
        if job.token_ids[0] == 2 and scorer.pieces[-1] == 2:
            raise ValueError("broken piece")

    scheduler = scheduling()
    scorer.before_piece = fail
    gate = Gate(queue)
    early = scheduler.score([job(2, mark=1)], WEIGHTS[0])
    failing = scheduler.score([job(2, mark=2)], WEIGHTS[0])
    beside = scheduler.score([job(2, mark=3)], WEIGHTS[0])
    apart = scheduler.score([job(2, mark=4)], WEIGHTS[1])
    gate.open()
    assert len(list(early)) == 2  # all its rows were there before the error
    for stream in (failing, beside):
        with pytest.raises(ValueError, match="broken piece"):
            list(stream)
    assert len(list(apart)) == 2
    assert marks(scorer) == [[1, 2, 3], [4]]
    assert len(list(scheduler.score([job(2, mark=5)], WEIGHTS[0]))) == 2


def test_results_before_an_error_are_delivered(scorer: FakeScorer, scheduling: Scheduling) -> None:
    def fail(_: ScoreJob) -> None:
        if len(scorer.pieces) == 3:
            raise ValueError("broken piece")

    scorer.before_piece = fail
    stream = scheduling().score([job(5)], WEIGHTS[0])
    assert rows([next(stream), next(stream)]) == rows_of(job(5))[:2]
    with pytest.raises(ValueError, match="broken piece"):
        next(stream)


def test_a_scorer_that_leaves_rows_out_is_an_error_and_no_hang(queue: DeviceQueue) -> None:
    class Forgetful:
        def score_jobs(self, *_: object) -> Iterator[None]:
            yield None

    scheduler = ScoringScheduler(queue, Forgetful(), token_budget=10)
    with pytest.raises(RuntimeError, match="before it had scored every row"):
        next(scheduler.score([job(2)], WEIGHTS[0]))


def test_a_broken_scheduler_ends_its_streams(
    scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ValueError("broken plan")

    scheduler = scheduling()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler._planner, "take_call", broken)
        with pytest.raises(ValueError, match="broken plan"):
            next(scheduler.score([job(2)], WEIGHTS[0], timeout_seconds=WAIT_SECONDS))
    assert len(list(scheduler.score([job(2)], WEIGHTS[0]))) == 2


# Drain.


def test_close_finishes_the_accepted_streams_and_refuses_others(
    scorer: FakeScorer,
) -> None:
    queue = DeviceQueue()
    scheduler = ScoringScheduler(queue, scorer, token_budget=10)
    accepted = scheduler.score([job(8, row=row) for row in range(3)], WEIGHTS[0])
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(queue.close)
        wait_until(lambda: queue._closing)
        with pytest.raises(UnavailableError):
            scheduler.score([job(1)], WEIGHTS[0])
        assert len(list(accepted)) == 24
        closing.result(WAIT_SECONDS)
    with pytest.raises(UnavailableError):
        scheduler.score([job(1)], WEIGHTS[0])


def test_close_cancels_what_its_grace_does_not_cover(scorer: FakeScorer) -> None:
    queue = DeviceQueue()
    stream = ScoringScheduler(queue, scorer, token_budget=10).score([job(8)], WEIGHTS[0])
    queue.close(grace_seconds=0.05)
    with pytest.raises(CancelledError):
        list(stream)
    assert scorer.closed_calls == 1


def test_close_cancels_a_stream_whose_task_had_no_turn_yet(scorer: FakeScorer) -> None:
    queue = DeviceQueue()
    gate = Gate(queue)
    scheduler = ScoringScheduler(queue, scorer, token_budget=10)
    stream = scheduler.score([job(8)], WEIGHTS[0])
    task = scheduler._task
    assert task is not None
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(queue.close, grace_seconds=0.01)
        wait_until(lambda: task._cancelled)
        gate.open()
        closing.result(WAIT_SECONDS)
    with pytest.raises(CancelledError):
        next(stream)
    assert scorer.calls == []


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
                window=generator.randint(1, 5),
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
