"""How streams of scoring end before their last row: cancellation, deadlines, errors, drain."""

from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from distill.engine.device_queue import DeviceQueue
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.errors import DeadlineError, UnavailableError
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

# Cancellation and deadlines.


def test_jobs_of_a_cancelled_stream_that_wait_are_never_scored(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    gate = Gate(queue)
    cancelled = scheduler.score([job(3, mark=1)], WEIGHTS[0])
    other = scheduler.score([job(3, mark=2)], WEIGHTS[0])
    cancelled.cancel()
    gate.open()
    assert len(list(other)) == 3
    assert marks(fake_scorer) == [[2]]
    with pytest.raises(CancelledError):
        next(cancelled)


def test_a_call_that_nobody_waits_for_is_closed_before_its_next_piece(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    with scheduler.score([job(50)], WEIGHTS[0]) as stream:
        next(stream)
        wait_until_resting(scheduler)
        pieces_before = len(fake_scorer.pieces)
    wait_until(lambda: not queue._unfinished)
    assert fake_scorer.closed_calls == 1
    assert len(fake_scorer.pieces) == pieces_before


def test_a_cancelled_part_of_a_shared_call_is_skipped_for_itself_alone(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    stop = Stop(fake_scorer, 1, WAIT_SECONDS)
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
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    scheduler = scheduling()
    stop = Stop(fake_scorer, 2, WAIT_SECONDS)
    gate = Gate(queue)
    other = scheduler.score(
        [job(3, row=0, mark=1), job(3, row=1, mark=2)], WEIGHTS[0], in_flight_limit=9
    )
    cancelled = scheduler.score([job(40, mark=3)], WEIGHTS[0])
    last = scheduler.score([job(3, mark=4)], WEIGHTS[0])
    gate.open()
    stop.wait()
    cancelled.cancel()
    stop.open()
    assert len(list(other)) == 6
    assert len(list(last)) == 3
    wait_until(lambda: not queue._unfinished)
    assert marks(fake_scorer) == [[1, 2, 3, 4]]
    assert 3 not in fake_scorer.pieces


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
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    gate = Gate(queue)
    stream = scheduling().score([job(3)], WEIGHTS[0], timeout_seconds=0.02)
    with pytest.raises(DeadlineError):
        next(stream)
    gate.open()
    wait_until(lambda: not queue._unfinished)
    assert fake_scorer.calls == []


# Errors.


def test_an_error_reaches_the_streams_of_its_call_and_no_others(
    queue: DeviceQueue, fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    def fail(job: ScoreJob) -> None:
        if job.token_ids[0] == 2 and fake_scorer.pieces[-1] == 2:
            raise ValueError("broken piece")

    scheduler = scheduling()
    fake_scorer.before_piece = fail
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
    assert marks(fake_scorer) == [[1, 2, 3], [4]]
    assert len(list(scheduler.score([job(2, mark=5)], WEIGHTS[0]))) == 2


def test_results_before_an_error_are_delivered(
    fake_scorer: FakeScorer, scheduling: Scheduling
) -> None:
    def fail(_: ScoreJob) -> None:
        if len(fake_scorer.pieces) == 3:
            raise ValueError("broken piece")

    fake_scorer.before_piece = fail
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
    fake_scorer: FakeScorer,
) -> None:
    queue = DeviceQueue()
    scheduler = ScoringScheduler(queue, fake_scorer, token_budget=10)
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


def test_close_cancels_what_its_grace_does_not_cover(fake_scorer: FakeScorer) -> None:
    queue = DeviceQueue()
    stream = ScoringScheduler(queue, fake_scorer, token_budget=10).score([job(8)], WEIGHTS[0])
    queue.close(grace_seconds=0.05)
    with pytest.raises(CancelledError):
        list(stream)
    assert fake_scorer.closed_calls == 1


def test_close_cancels_a_stream_whose_task_had_no_turn_yet(fake_scorer: FakeScorer) -> None:
    queue = DeviceQueue()
    gate = Gate(queue)
    scheduler = ScoringScheduler(queue, fake_scorer, token_budget=10)
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
    assert fake_scorer.calls == []
