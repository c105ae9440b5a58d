"""What waits leaves room for what it waits for."""

import pytest

from distill.errors import BusyError, DeadlineError
from student_service.runs.sequencer import Sequencer
from student_service.runs.waiting_room import WaitingRoom
from tests.student_service.runs.test_sequencer import ticket


def test_a_room_is_full_by_places_or_by_bytes_and_has_both_back_afterwards():
    room = WaitingRoom(places=2, byte_limit=10)
    assert room.enter(6)
    assert not room.enter(5)
    assert room.enter(4)
    assert not room.enter(0)
    room.leave(6)
    assert room.enter(6)


def test_a_mutation_that_holds_too_much_may_run_but_not_wait():
    sequencer = Sequencer(0, waiting_room=WaitingRoom(places=8, byte_limit=10))

    def apply(number, held_bytes):
        return sequencer.execute(
            ticket(number),
            lambda state: (state + 1, "done"),
            timeout_seconds=0.05,
            held_bytes=held_bytes,
        )

    with pytest.raises(BusyError, match="too large ones"):
        apply(2, held_bytes=11)
    with pytest.raises(DeadlineError):  # it may wait, and what it held is free again
        apply(2, held_bytes=10)
    with pytest.raises(DeadlineError):
        apply(2, held_bytes=10)
    assert apply(1, held_bytes=11) == ("done", False)
