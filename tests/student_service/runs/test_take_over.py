"""A run has one writer: who it is, and how another one becomes it."""

import threading

import pytest

from distill.errors import CallEndedError, DeadlineError, WriterFencedError
from student_service.runs.sequencer import KEPT_ATTACHMENTS, Sequencer
from tests.student_service.runs.test_sequencer import apply, last


def test_take_over_fences_the_writer_before():
    sequencer = Sequencer(0)
    apply(sequencer, 1)
    assert sequencer.take_over()[0] == 2
    with pytest.raises(WriterFencedError, match="current epoch is 2, got 1"):
        apply(sequencer, 2)
    assert apply(sequencer, 2, epoch=2) == ("done", False)


def test_take_over_waits_for_what_is_in_flight_within_its_own_time():
    sequencer = Sequencer(0)
    begun, release = threading.Event(), threading.Event()

    def slow():
        begun.set()
        release.wait(5)
        return "answer"

    thread = threading.Thread(target=lambda: apply(sequencer, 1, slow))
    thread.start()
    assert begun.wait(5)
    with pytest.raises(DeadlineError, match="in flight"):
        sequencer.take_over(timeout_seconds=0.05)
    with pytest.raises(CallEndedError):
        sequencer.take_over(is_active=lambda: False)
    assert sequencer.committed.writer_epoch == 1
    release.set()
    assert sequencer.take_over(timeout_seconds=5)[0] == 2
    assert last(sequencer) == 1
    thread.join(5)


def test_take_over_fences_a_request_that_already_waits():
    sequencer = Sequencer(0)
    errors = []

    def wait_for_predecessor():
        try:
            apply(sequencer, 2)
        except WriterFencedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait_for_predecessor)
    thread.start()
    sequencer.take_over()
    thread.join(5)
    assert len(errors) == 1


def test_a_repeated_take_over_gets_the_epoch_that_it_gave_and_fences_nobody():
    sequencer = Sequencer(0, attach_id="created")
    assert sequencer.take_over(attach_id="created")[0] == 1
    assert sequencer.take_over(attach_id="first")[0] == 2
    assert sequencer.take_over(attach_id="first")[0] == 2
    assert sequencer.take_over(attach_id="second")[0] == 3
    epoch, committed = sequencer.take_over(attach_id="first")
    assert (epoch, committed.writer_epoch) == (2, 3)
    assert sequencer.take_over()[0] == 4  # without a name each attempt is a new one
    assert sequencer.take_over()[0] == 5


def test_take_over_of_an_expected_writer_refuses_every_other_one():
    sequencer = Sequencer(0)
    assert sequencer.take_over(expected_epoch=1)[0] == 2
    with pytest.raises(WriterFencedError, match="expected_writer_epoch: the current epoch is 2"):
        sequencer.take_over(expected_epoch=1)
    assert sequencer.committed.writer_epoch == 2


def test_writers_that_take_over_side_by_side_get_epochs_of_their_own():
    sequencer = Sequencer(0)
    begun, release, given = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        release.wait(5)

    def take_over(name):
        given.append(sequencer.take_over(attach_id=name, timeout_seconds=5))

    threads = [threading.Thread(target=lambda: apply(sequencer, 1, slow))]
    threads += [threading.Thread(target=take_over, args=(f"{index % 8}",)) for index in range(16)]
    for thread in threads:
        thread.start()
        assert begun.wait(5)
    release.set()
    for thread in threads:
        thread.join(5)
    assert sorted(epoch for epoch, _ in given) == sorted([*range(2, 10)] * 2)
    assert {committed.sequence_number for _, committed in given} == {1}


def test_attachments_are_forgotten_in_the_end():
    sequencer = Sequencer(0)
    for index in range(KEPT_ATTACHMENTS + 1):
        sequencer.take_over(attach_id=f"{index}")
    epoch = sequencer.committed.writer_epoch
    assert sequencer.take_over(attach_id="1")[0] == 3
    assert sequencer.take_over(attach_id="0")[0] == epoch + 1


def test_whoever_finds_a_run_of_another_writer_gets_no_epoch():
    sequencer = Sequencer(0, attach_id="creator")
    assert sequencer.attach("creator")[0] == 1
    assert sequencer.attach("another")[0] == sequencer.attach("")[0] == 0
    sequencer.take_over(attach_id="another")
    assert sequencer.attach("another")[0] == 2
    assert sequencer.attach("creator")[0] == 1  # fenced, and told the epoch that it had
    unnamed = Sequencer(0)
    assert unnamed.attach("")[0] == 1
    assert unnamed.attach("another")[0] == 0
