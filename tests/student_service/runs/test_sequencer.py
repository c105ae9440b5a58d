"""Exactly once, in order, whatever order requests arrive in."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import (
    AlreadyAppliedError,
    BusyError,
    CallEndedError,
    DeadlineError,
    InvalidFieldError,
    RunDeletedError,
    SequenceReusedError,
    WrongStateError,
)
from student_service.runs.kept_answers import Ticket
from student_service.runs.sequencer import Sequencer
from student_service.runs.waiting_room import WaitingRoom


def ticket(number, content=None, epoch=1):
    digest = (content or f"operation {number}").encode()
    return Ticket(writer_epoch=epoch, sequence_number=number, digest=digest)


def apply(
    sequencer,
    number,
    operation=lambda: "done",
    *,
    timeout=5.0,
    is_active=lambda: True,
    **identity,
):
    """The state of these sequencers is the number of mutations that changed it."""
    return sequencer.execute(
        ticket(number, **identity),
        lambda state: (state + 1, operation()),
        timeout_seconds=timeout,
        is_active=is_active,
    )


def last(sequencer):
    return sequencer.committed.sequence_number


def test_repetition_gets_the_first_answer_and_runs_nothing():
    sequencer = Sequencer(0)
    assert apply(sequencer, 1, lambda: "first") == ("first", False)
    assert apply(sequencer, 1, lambda: "second") == ("first", True)
    assert last(sequencer) == 1


def test_reused_number_with_other_content_is_refused():
    sequencer = Sequencer(0)
    apply(sequencer, 1)
    with pytest.raises(SequenceReusedError, match="other content"):
        apply(sequencer, 1, content="something else")


def test_failed_operation_does_not_consume_its_number():
    sequencer = Sequencer(0)

    def fail():
        raise InvalidFieldError("x", "bad")

    with pytest.raises(InvalidFieldError):
        apply(sequencer, 1, fail)
    assert last(sequencer) == 0
    assert apply(sequencer, 1, lambda: "corrected", content="corrected") == ("corrected", False)


def test_number_beyond_the_limit_is_refused_and_names_the_last():
    sequencer = Sequencer(0, in_flight_limit=4)
    with pytest.raises(WrongStateError, match=r"at most 4 .the last applied is 0., got 5"):
        apply(sequencer, 5)


def test_answer_that_is_no_longer_kept_is_reported_as_applied():
    sequencer = Sequencer(0, in_flight_limit=2)
    for number in (1, 2, 3):
        apply(sequencer, number)
    with pytest.raises(AlreadyAppliedError, match="used already"):
        apply(sequencer, 1)
    assert apply(sequencer, 2)[1]


def test_kept_answers_stay_within_their_bytes_and_the_latest_is_always_kept():
    sequencer = Sequencer(0, measure=len, answer_bytes=25)
    sizes = (10, 10, 10, 100, 5, 20, 1)
    # Before each, the answers kept so far shrink to 25 bytes; the fourth is more than that alone.
    kept_after = [(1,), (1, 2), (1, 2, 3), (2, 3, 4), (5,), (5, 6), (5, 6, 7)]
    for number, (size, kept) in enumerate(zip(sizes, kept_after, strict=True), start=1):
        apply(sequencer, number, lambda size=size: "x" * size)
        for earlier in range(1, number + 1):
            if earlier in kept:
                assert apply(sequencer, earlier) == ("x" * sizes[earlier - 1], True)
            else:
                with pytest.raises(AlreadyAppliedError, match="used already"):
                    apply(sequencer, earlier)


def test_missing_predecessor_ends_in_the_deadline_and_leaves_the_number_free():
    sequencer = Sequencer(0)
    with pytest.raises(DeadlineError, match="2 still waits for 1"):
        apply(sequencer, 2, timeout=0.05)
    apply(sequencer, 1)
    assert apply(sequencer, 2) == ("done", False)


class Caller:
    """The other end of a call; says when it waits and can leave."""

    def __init__(self):
        self.present = True
        self.waits = threading.Event()
        self._looks = 0

    def is_active(self):
        # The second look is the last thing before the wait, under the sequencer's lock.
        self._looks += 1
        if self._looks == 2:
            self.waits.set()
        return self.present


def test_caller_that_leaves_while_it_waits_frees_its_place():
    sequencer = Sequencer(0, waiting_room=WaitingRoom(places=1))
    caller, errors = Caller(), []

    def wait_for_predecessor():
        with pytest.raises(CallEndedError, match="before 2 had its turn") as caught:
            apply(sequencer, 2, timeout=None, is_active=caller.is_active)
        errors.append(caught.value)

    thread = threading.Thread(target=wait_for_predecessor)
    thread.start()
    assert caller.waits.wait(5)
    caller.present = False
    sequencer.wake()
    thread.join(5)
    assert len(errors) == 1
    with pytest.raises(DeadlineError):  # it may wait: the place is free
        apply(sequencer, 3, timeout=0.05)


def test_caller_that_left_before_its_turn_changes_nothing():
    sequencer = Sequencer(0)
    with pytest.raises(CallEndedError):
        apply(sequencer, 1, is_active=lambda: False)
    assert apply(sequencer, 1, content="another") == ("done", False)
    assert apply(sequencer, 1, content="another", is_active=lambda: False) == ("done", True)


def test_request_that_finds_no_place_to_wait_is_refused_and_the_next_number_runs():
    room = WaitingRoom(places=2)
    sequencers = [Sequencer(0, waiting_room=room) for _ in range(2)]
    answers, threads = [], []

    def wait_for_predecessor(sequencer, caller):
        answers.append(apply(sequencer, 2, is_active=caller.is_active))

    for sequencer in sequencers:
        caller = Caller()
        threads.append(threading.Thread(target=wait_for_predecessor, args=(sequencer, caller)))
        threads[-1].start()
        assert caller.waits.wait(5)
    with pytest.raises(BusyError, match="3 would have to wait for 1"):
        apply(sequencers[0], 3)
    for sequencer in sequencers:
        assert apply(sequencer, 1) == ("done", False)
    for thread in threads:
        thread.join(5)
    assert answers == [("done", False)] * 2
    assert apply(sequencers[0], 3) == ("done", False)


def test_duplicate_in_flight_waits_for_the_one_answer():
    sequencer = Sequencer(0)
    started, release, runs, answers = threading.Event(), threading.Event(), [], []

    def slow():
        runs.append(1)
        started.set()
        release.wait(5)
        return "answer"

    threads = [
        threading.Thread(target=lambda: answers.append(apply(sequencer, 1, slow))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    started.wait(5)
    with pytest.raises(SequenceReusedError, match="in flight with other content"):
        apply(sequencer, 1, content="something else")
    release.set()
    for thread in threads:
        thread.join(5)
    assert len(runs) == 1
    assert sorted(answers) == [("answer", False), ("answer", True), ("answer", True)]


def test_deleted_run_refuses_everything_but_the_repeated_deletion():
    sequencer = Sequencer(0)
    begun, release, answers = threading.Event(), threading.Event(), []

    def delete():
        sequencer.close()
        begun.set()
        release.wait(5)
        return "deleted"

    def repeat():
        answers.append(apply(sequencer, 1, delete))

    threads = [threading.Thread(target=repeat) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert begun.wait(5)
    release.set()
    for thread in threads:
        thread.join(5)
    assert sorted(answers) == [("deleted", False), ("deleted", True)]
    with pytest.raises(RunDeletedError, match="deleted"):
        apply(sequencer, 2)
    with pytest.raises(RunDeletedError, match="deleted"):
        sequencer.take_over()


@settings(max_examples=30)
@given(st.permutations([number for number in range(1, 9) for _ in range(2)]))
def test_any_arrival_order_with_duplicates_applies_each_once_in_order(arrivals):
    sequencer = Sequencer(0)
    applied = []
    threads = []
    for number in arrivals:

        def run(number=number):
            apply(sequencer, number, lambda: applied.append(number) or number, timeout=20)

        threads.append(threading.Thread(target=run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert applied == list(range(1, 9))
    assert last(sequencer) == 8


def test_an_operation_that_fails_while_its_answer_is_made_has_changed_nothing():
    def unmeasurable(answer):
        raise ArithmeticError(answer)

    sequencer = Sequencer(0, measure=unmeasurable)
    for _ in range(2):  # the second is no repetition of an applied one
        with pytest.raises(ArithmeticError):
            apply(sequencer, 1)
        assert (sequencer.committed.state, last(sequencer)) == (0, 0)


def test_readers_never_see_the_state_of_one_number_beside_another_number():
    sequencer, ended, seen = Sequencer(0), threading.Event(), []

    def read():
        while not ended.is_set():
            now = sequencer.committed
            seen.append(now.state - now.sequence_number)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 2000):
        apply(sequencer, number)
    ended.set()
    reader.join(5)
    assert set(seen) == {0}
