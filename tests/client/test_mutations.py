"""Several mutations on their way at once: they apply in the order given, and none twice."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

import pytest

from client.errors import PredecessorFailedError, ServiceError, UncertainMutationError
from client.mutations import MOST_IN_FLIGHT
from client.run import StudentRun
from client.settings import LoraConfig
from client.student import StudentClient
from distill.errors import (
    AlreadyExistsError,
    DistillError,
    InvalidFieldError,
    NotFoundError,
    SequenceReusedError,
    UnavailableError,
    WriterFencedError,
)
from distill.v1 import student_service_pb2 as messages
from distill.v1 import training_pb2
from tests.client.fake_server import serving
from tests.client.fake_student import FakeStudent
from tests.client.requests import EXAMPLE, STEP, pull

PROMPT_SECONDS = 5.0
"""Far below the deadline of the calls, 20 s."""


def submit_batch(run: StudentRun) -> Future:
    return run.submit_forward_backward([EXAMPLE], pull=pull())


@contextmanager
def holding(
    fake: FakeStudent, *numbers: int, refused: int | None = None
) -> Iterator[dict[int, threading.Event]]:
    """Yields events by number: these mutations wait for theirs when they arrive.

    Then `refused` is refused, once.
    """
    gates = {number: threading.Event() for number in numbers}
    to_refuse = {refused}

    def arrive(number: int) -> None:
        if number in gates:
            gates[number].wait(40)
        if number in to_refuse:
            to_refuse.clear()
            raise InvalidFieldError("adamw", "refused by the test")

    fake.on_arrival = arrive
    try:
        yield gates
    finally:
        for gate in gates.values():
            gate.set()


def test_two_submitted_calls_are_on_their_way_together(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    meeting = threading.Barrier(2, timeout=PROMPT_SECONDS)  # breaks unless both are there at once

    def meet(_: int) -> None:
        meeting.wait()

    fake_student.on_arrival = meet
    batch, step = submit_batch(run), run.submit_optim_step(STEP)
    assert step.result().step == 1
    assert batch.result().totals.row_count == 3
    assert fake_student.normalizers == [3.0]


def test_whatever_order_they_arrive_in_they_apply_in_the_order_of_the_calls(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    delays = random.Random(0)

    def delay(_: int) -> None:
        time.sleep(delays.uniform(0, 0.03))

    fake_student.on_arrival = delay
    fake_student.lose_answers = 3
    steps = []
    for _ in range(12):
        submit_batch(run)
        steps.append(run.submit_optim_step(STEP))
    assert [one.result().step for one in steps] == list(range(1, 13))
    assert fake_student.normalizers == [3.0] * 12
    assert fake_student.last == 24
    assert fake_student.arrived != sorted(fake_student.arrived)  # else nothing was tested


def test_calls_of_many_threads_get_each_number_once(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    delays = random.Random(1)

    def delay(_: int) -> None:
        time.sleep(delays.uniform(0, 0.01))

    fake_student.on_arrival = delay
    with ThreadPoolExecutor(6) as callers:
        submitted = [callers.submit(run.submit_optim_step, STEP) for _ in range(30)]
        waited = [callers.submit(run.optim_step, STEP) for _ in range(30)]
        steps = [one.result().result().step for one in submitted]
        steps += [one.result().step for one in waited]
    assert sorted(steps) == list(range(1, 61))
    assert sorted(fake_student.arrived) == list(range(1, 61))


def test_those_behind_a_refused_call_end_at_once_and_their_copies_are_fenced(
    run: StudentRun, student: StudentClient, fake_student: FakeStudent
) -> None:
    with holding(fake_student, 2, 3, refused=2) as gates:
        first, refused = submit_batch(run), run.submit_optim_step(STEP)
        behind: list[Future] = [submit_batch(run), run.submit_optim_step(STEP)]
        for number in (2, 3, 4):
            fake_student.wait_for_arrival(number)
        started = time.monotonic()
        gates[2].set()
        with pytest.raises(ServiceError, match="refused by the test"):
            refused.result()
        for one in behind:
            with pytest.raises(PredecessorFailedError, match="nothing of it was applied") as caught:
                one.result()
            assert isinstance(caught.value.__cause__, ServiceError)
        assert time.monotonic() - started < PROMPT_SECONDS
        assert first.result().totals.row_count == 3
        assert fake_student.last == 1
        _wait_until(lambda: fake_student.dropped == [4])  # its call was cancelled
        # The copy of number 3 is still held: it must not follow the number 2 that comes now.
        assert run.optim_step(STEP).step == 1
        assert (fake_student.epoch, fake_student.last) == (2, 2)
    late = messages.OptimStepRequest(
        mutation=training_pb2.Mutation(run_id="run", writer_epoch=1, sequence_number=3), adamw=STEP
    )
    with pytest.raises(ServiceError) as fenced:
        student._connection.ask(student._stub.OptimStep, late, 5)
    assert fenced.value.reason == "WRITER_FENCED"
    assert submit_batch(run).result().totals.row_count == 3
    assert (fake_student.epoch, fake_student.last) == (2, 3)


def test_a_refused_call_with_nobody_behind_needs_no_take_over(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    with holding(fake_student, 1, refused=2) as gates:
        first = submit_batch(run)
        with pytest.raises(ServiceError, match="refused by the test"):
            run.optim_step(STEP)
        second = run.submit_optim_step(STEP)
        gates[1].set()
        assert second.result().step == 1
    assert first.result().totals.row_count == 3
    assert (fake_student.epoch, fake_student.last) == (1, 2)


@pytest.mark.parametrize("heard_from", ["the refused one", "one behind it"])
def test_what_is_called_before_anybody_has_heard_of_a_refusal_is_behind_it(
    run: StudentRun, fake_student: FakeStudent, heard_from: str
) -> None:
    assert submit_batch(run).result().totals.row_count == 3
    with holding(fake_student, refused=2):
        refused = submit_batch(run)
        _wait_until(refused.done)
        step, other = run.submit_optim_step(STEP), run.submit_optim_step(STEP)
        assert fake_student.arrived == [1, 2]  # a step without its second batch was not sent
        if heard_from == "the refused one":
            with pytest.raises(ServiceError, match="refused by the test"):
                refused.result()
        for one in (step, other):
            assert isinstance(one.exception(), PredecessorFailedError)
    assert run.optim_step(STEP).step == 1
    assert (fake_student.epoch, fake_student.last) == (1, 2)


def test_a_waiting_call_tells_of_a_refusal_that_nobody_has_heard_of(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    with holding(fake_student, refused=1):
        refused = submit_batch(run)
        _wait_until(refused.done)
        with pytest.raises(PredecessorFailedError, match="forward_backward before it was refused"):
            run.optim_step(STEP)
    assert run.optim_step(STEP).step == 1


def test_a_take_over_waits_for_those_before_the_refused_call(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    with holding(fake_student, 1, 2, 3, refused=2) as gates, ThreadPoolExecutor(1) as caller:
        first, refused, behind = submit_batch(run), submit_batch(run), submit_batch(run)
        gates[2].set()
        with pytest.raises(ServiceError, match="refused by the test"):
            refused.result()
        with pytest.raises(PredecessorFailedError):
            behind.result()
        after = caller.submit(run.optim_step, STEP)
        with pytest.raises(FutureTimeoutError):
            after.result(0.2)
        assert fake_student.epoch == 1
        gates[1].set()
        assert first.result().totals.row_count == 3
        assert after.result().step == 1
    assert (fake_student.epoch, fake_student.last) == (2, 2)


def test_a_take_over_hides_no_uncertain_call_before_the_refused_one(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    with holding(fake_student, 1, 2, 3, refused=2) as gates:
        lost = run.submit_optim_step(STEP, timeout_seconds=0.5)
        refused, behind = submit_batch(run), submit_batch(run)
        gates[2].set()
        with pytest.raises(ServiceError, match="refused by the test"):
            refused.result()
        with pytest.raises(PredecessorFailedError):
            behind.result()
        with pytest.raises(UncertainMutationError, match="optim_step"):
            run.save_checkpoint("after")  # it waits for the first one
        assert lost.exception() is not None
        assert run.resynchronize() == 0
    assert run.optim_step(STEP).step == 1


@pytest.mark.parametrize("lost_answers", [1, 3])  # a retry of the call, or of the caller
def test_the_automatic_take_over_can_be_repeated_and_raises_one_epoch(
    run: StudentRun, fake_student: FakeStudent, lost_answers: int
) -> None:
    _refuse_with_one_behind(run, fake_student)
    fake_student.lose_take_overs = lost_answers
    if lost_answers == 3:
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            run.optim_step(STEP)
    assert run.optim_step(STEP).step == 1
    assert (fake_student.epoch, fake_student.last) == (2, 1)


def test_the_automatic_take_over_takes_the_run_from_no_other_writer(
    run: StudentRun, student: StudentClient, fake_student: FakeStudent
) -> None:
    _refuse_with_one_behind(run, fake_student)
    successor = student.create_run("run", lora=LoraConfig(rank=4), take_over=True)
    with pytest.raises(ServiceError) as caught:
        run.optim_step(STEP)
    assert caught.value.reason == "WRITER_FENCED"
    assert successor.optim_step(STEP).step == 1


def _refuse_with_one_behind(run: StudentRun, fake: FakeStudent) -> None:
    with holding(fake, 1, refused=1) as gates:
        refused, behind = run.submit_optim_step(STEP), run.submit_optim_step(STEP)
        gates[1].set()
        with pytest.raises(ServiceError, match="refused by the test"):
            refused.result()
        with pytest.raises(PredecessorFailedError):
            behind.result()


@pytest.mark.parametrize("applied_count", [0, 1, 2])
def test_those_behind_a_call_without_an_answer_are_uncertain_until_it_is_settled(
    run: StudentRun, fake_student: FakeStudent, applied_count: int
) -> None:
    with holding(fake_student, 2, 3) as gates:
        first = submit_batch(run)
        lost = run.submit_optim_step(STEP, timeout_seconds=0.3)
        behind = submit_batch(run)
        for number in (2, 3):
            fake_student.wait_for_arrival(number)
        started = time.monotonic()
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            lost.result()
        with pytest.raises(UncertainMutationError, match=r"forward_backward: optim_step before it"):
            behind.result()
        assert time.monotonic() - started < PROMPT_SECONDS
        assert first.result().totals.row_count == 3
        for number in range(2, 2 + applied_count):
            gates[number].set()
            _wait_until(lambda last=number: fake_student.last == last)
        with pytest.raises(UncertainMutationError, match="optim_step"):
            submit_batch(run)
        assert run.resynchronize() == applied_count
    assert run.save_checkpoint("after").name == "after"
    assert fake_student.last == 2 + applied_count


def _wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    "conflict",
    [
        SequenceReusedError("other content"),
        WriterFencedError("writer_epoch", current=2, got=1),
        NotFoundError("no such run"),
        AlreadyExistsError("the name is taken"),
    ],
    ids=lambda conflict: conflict.reason,
)
def test_a_conflict_after_a_retry_is_settled_by_asking(
    run: StudentRun,
    fake_student: FakeStudent,
    monkeypatch: pytest.MonkeyPatch,
    conflict: DistillError,
) -> None:
    genuine = fake_student._apply

    def apply_then_refuse(*args):
        if fake_student.last:
            raise conflict
        genuine(*args)
        raise UnavailableError("the answer was lost")

    monkeypatch.setattr(fake_student, "_apply", apply_then_refuse)
    with pytest.raises(ServiceError, match=conflict.code):
        run.optim_step(STEP)
    monkeypatch.undo()
    with pytest.raises(UncertainMutationError):
        run.optim_step(STEP)
    assert run.resynchronize() == 1
    assert run.optim_step(STEP).step == 2


def test_a_conflict_of_the_only_attempt_changed_nothing(
    run: StudentRun, fake_student: FakeStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_):
        raise SequenceReusedError("other content")

    monkeypatch.setattr(fake_student, "_apply", refuse)
    with pytest.raises(ServiceError, match="ABORTED"):
        run.optim_step(STEP)
    monkeypatch.undo()
    assert run.optim_step(STEP).step == 1


@pytest.mark.parametrize("window", [0, 1, 2, 64])
def test_no_more_are_in_flight_than_the_service_allows(
    student: StudentClient, fake_student: FakeStudent, window: int
) -> None:
    fake_student.max_in_flight_mutations = window
    run = student.create_run("run", lora=LoraConfig(rank=4))
    most = max(1, min(window, MOST_IN_FLIGHT))
    fake_student.max_in_flight_mutations = 64
    with holding(fake_student, 1) as gates:
        fake_student.max_in_flight_mutations = window
        futures = [run.submit_optim_step(STEP) for _ in range(most)]
        with pytest.raises(ServiceError, match=f"DEADLINE_EXCEEDED: not sent: {most} earlier"):
            run.submit_optim_step(STEP, timeout_seconds=0.2)
        fake_student.max_in_flight_mutations = 64
        gates[1].set()
        assert [one.result().step for one in futures] == list(range(1, most + 1))
    assert run.optim_step(STEP).step == most + 1


def test_a_future_cannot_be_cancelled(run: StudentRun, fake_student: FakeStudent) -> None:
    with holding(fake_student, 1):
        step = run.submit_optim_step(STEP)
        assert not step.cancel()
    assert step.result().step == 1


@contextmanager
def _sigterm_as_distill_has_it() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_call_that_a_signal_broke_off_is_settled_by_asking(
    run: StudentRun,
    fake_student: FakeStudent,
    number: signal.Signals,
    end: type[BaseException],
) -> None:
    released = threading.Event()

    def interrupt(_: int) -> None:
        os.kill(os.getpid(), number)
        released.wait(15)

    fake_student.on_arrival = interrupt
    started = time.monotonic()
    with _sigterm_as_distill_has_it(), pytest.raises(end):
        run.optim_step(STEP)
    assert time.monotonic() - started < PROMPT_SECONDS
    fake_student.on_arrival = lambda _: None
    released.set()
    _wait_until(lambda: fake_student.last == 1)
    with pytest.raises(UncertainMutationError, match="optim_step"):
        run.optim_step(STEP)
    assert run.resynchronize() == 1
    assert run.optim_step(STEP).step == 2


def test_ctrl_c_while_a_future_is_waited_for_leaves_the_call_on_its_way(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    with holding(fake_student, 1):
        step = run.submit_optim_step(STEP)
        fake_student.wait_for_arrival(1)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            step.result()
    assert step.result().step == 1
    assert run.optim_step(STEP).step == 2


@pytest.mark.parametrize("waiting_for", ["room", "a take-over"])
def test_ctrl_c_before_a_call_has_its_number_changes_nothing(
    run: StudentRun, fake_student: FakeStudent, waiting_for: str
) -> None:
    count = MOST_IN_FLIGHT if waiting_for == "room" else 3
    refused = None if waiting_for == "room" else 2
    with holding(fake_student, 1, 2, refused=refused) as gates:
        futures = [run.submit_optim_step(STEP) for _ in range(count)]
        if refused is not None:
            gates[2].set()
            with pytest.raises(PredecessorFailedError):
                futures[2].result()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run.optim_step(STEP)
    done = 1 if refused is not None else count
    assert [one.result().step for one in futures[:done]] == list(range(1, done + 1))
    assert run.optim_step(STEP).step == done + 1


def test_closing_the_client_ends_the_calls(
    run: StudentRun, student: StudentClient, fake_student: FakeStudent
) -> None:
    with holding(fake_student, 1):
        futures = [run.submit_optim_step(STEP) for _ in range(2)]
        fake_student.wait_for_arrival(1)
        started = time.monotonic()
        student.close()
        for one in futures:
            with pytest.raises((ServiceError, UncertainMutationError)):
                one.result()
        assert time.monotonic() - started < PROMPT_SECONDS


LEAVING = """
import os, signal, sys, threading
from client.settings import AdamW, LoraConfig
from client.student import StudentClient

student = StudentClient(sys.argv[1], timeout_seconds=60)
run = student.create_run("run", lora=LoraConfig(rank=4))
futures = [run.submit_optim_step(AdamW(learning_rate=1e-3)) for _ in range(2)]
print("submitted", flush=True)
if sys.argv[2] == "ctrl-c":
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        futures[0].result()
    except KeyboardInterrupt:
        student.close()
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "printed"), [("end", "submitted\n"), ("ctrl-c", "submitted\ninterrupted\n")]
)
def test_calls_on_their_way_keep_no_interpreter_from_its_exit(
    fake_student: FakeStudent, how: str, printed: str
) -> None:
    with serving(fake_student) as address, holding(fake_student, 1):
        ended = subprocess.run(
            [sys.executable, "-c", LEAVING, address, how],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, printed, "")
