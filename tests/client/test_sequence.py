"""Numbers of mutations: none is given twice, and one whose fate is unknown is asked about."""

import threading

import pytest

from client.errors import BrokenStreamError, ServiceError, UncertainMutationError
from client.run import StudentRun
from client.settings import Example, LoraConfig, base_weights, batch_settings, scored_prompt
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.errors import AlreadyAppliedError, LimitExceededError, UnavailableError
from distill.limits import MAX_MESSAGE_BYTES
from tests.client.fake_student import FakeStudent
from tests.client.requests import EXAMPLE, STEP, TEACHER_PROMPT, pull


def test_numbers_count_from_one_over_all_mutations(run: StudentRun, student: StudentClient) -> None:
    run.forward_backward([EXAMPLE], batch_settings(), pull=pull())
    assert run.optim_step(STEP).step == 1
    run.save_checkpoint("first")
    run.load_checkpoint("first")
    assert student.get_run("run").last_sequence_number == 4


def test_evaluation_consumes_no_number(run: StudentRun) -> None:
    run.forward([EXAMPLE], batch_settings(), pull=pull(), weights=base_weights())
    assert run.state().last_sequence_number == 0


def test_a_lost_answer_is_asked_for_again_with_the_same_content(
    run: StudentRun, teacher: TeacherClient, fake_student: FakeStudent
) -> None:
    fake_student.lose_answers = 1
    prompts = [scored_prompt(TEACHER_PROMPT, score_from=4)]
    result = run.forward_backward(
        [EXAMPLE], batch_settings(), chunks=teacher.stream_top_k_messages(prompts, 5)
    )
    assert result.replayed
    assert fake_student.calls == ["ForwardBackward"] * 2
    assert fake_student.last == 1
    fake_student.lose_answers = 1
    assert run.optim_step(STEP).replayed
    assert fake_student.step == 1


def test_a_retry_sends_what_the_first_attempt_sent(
    run: StudentRun, fake_student: FakeStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, settings = Example(), batch_settings()
    example.CopyFrom(EXAMPLE)
    genuine = fake_student._apply

    def edit_and_apply(*args):
        example.target_offset += 1
        settings.objective += 1
        return genuine(*args)

    monkeypatch.setattr(fake_student, "_apply", edit_and_apply)
    fake_student.lose_answers = 1
    assert run.forward_backward([example], settings, pull=pull()).replayed


def test_a_refused_mutation_leaves_its_number_to_the_next(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    fake_student.refuse_next = True
    with pytest.raises(ServiceError, match="FAILED_PRECONDITION"):
        run.optim_step(STEP)
    assert run.optim_step(STEP).step == 1
    assert fake_student.last == 1


@pytest.mark.parametrize("applied", [True, False])
def test_a_mutation_without_an_answer_is_settled_by_asking(
    run: StudentRun, fake_student: FakeStudent, applied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if applied:
        monkeypatch.setattr(fake_student, "_apply", _lose_every_answer(fake_student))
    else:
        monkeypatch.setattr(fake_student, "_apply", _always_unavailable)
    with pytest.raises(ServiceError, match="UNAVAILABLE"):
        run.optim_step(STEP)
    monkeypatch.undo()
    with pytest.raises(UncertainMutationError, match="optim_step"):
        run.optim_step(STEP)
    assert run.resynchronize() == (1 if applied else 0)
    assert run.optim_step(STEP).step == (2 if applied else 1)


def test_an_answer_that_fits_no_message_is_no_refusal(
    run: StudentRun, fake_student: FakeStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = fake_student._apply

    def apply(*args):
        answer = genuine(*args)
        answer.weights_version = "w" * MAX_MESSAGE_BYTES
        return answer

    monkeypatch.setattr(fake_student, "_apply", apply)
    with pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED"):
        run.optim_step(STEP)
    monkeypatch.undo()
    with pytest.raises(UncertainMutationError, match="optim_step"):
        run.optim_step(STEP)
    assert run.resynchronize()


def test_a_limit_that_the_service_names_is_a_refusal(
    run: StudentRun, fake_student: FakeStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise LimitExceededError("batch", 1, 2)

    monkeypatch.setattr(fake_student, "_apply", refuse)
    with pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED"):
        run.optim_step(STEP)
    monkeypatch.undo()
    assert run.optim_step(STEP).step == 1


def _make_uncertain(run: StudentRun, fake: FakeStudent) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "_apply", _lose_every_answer(fake))
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            run.optim_step(STEP)


def test_resynchronizing_does_not_fence_a_writer_that_took_over(
    run: StudentRun, student: StudentClient, fake_student: FakeStudent
) -> None:
    _make_uncertain(run, fake_student)
    successor = student.create_run("run", lora=LoraConfig(rank=4), take_over=True)
    for _ in range(2):
        with pytest.raises(ServiceError, match=r"ABORTED.*another writer took over") as caught:
            run.resynchronize()
        assert caught.value.reason == "WRITER_FENCED"
    assert successor.optim_step(STEP).step == 2


@pytest.mark.parametrize("lost_answers", [1, 3])  # a retry of the call, or of the caller
def test_resynchronizing_can_be_repeated_when_its_own_answer_is_lost(
    run: StudentRun, fake_student: FakeStudent, lost_answers: int
) -> None:
    _make_uncertain(run, fake_student)
    fake_student.lose_take_overs = lost_answers
    if lost_answers == 3:
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            run.resynchronize()
    assert run.resynchronize()
    assert fake_student.epoch == 2
    assert len({one.attach_id for one in fake_student.attach_requests[1:]}) == 1
    assert run.optim_step(STEP).step == 2


def test_a_repeated_resynchronize_neither_fences_a_later_writer_nor_counts_what_it_did(
    run: StudentRun, student: StudentClient, fake_student: FakeStudent
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_student, "_apply", _always_unavailable)
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            run.optim_step(STEP)
    fake_student.lose_take_overs = 3
    with pytest.raises(ServiceError, match="UNAVAILABLE"):
        run.resynchronize()
    successor = student.create_run("run", lora=LoraConfig(rank=4), take_over=True)
    assert successor.optim_step(STEP).step == 1
    with pytest.raises(ServiceError, match="ABORTED") as caught:
        run.resynchronize()
    assert caught.value.reason == "WRITER_FENCED"
    with pytest.raises(UncertainMutationError):
        run.optim_step(STEP)
    assert successor.optim_step(STEP).step == 2


def test_resynchronizing_a_run_that_is_gone_makes_no_new_one(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    _make_uncertain(run, fake_student)
    fake_student.deleted = True
    with pytest.raises(ServiceError, match="NOT_FOUND"):
        run.resynchronize()


def test_a_run_can_be_taken_from_one_writer_alone(student: StudentClient, run: StudentRun) -> None:
    lora = LoraConfig(rank=4)
    second = student.create_run("run", lora=lora, take_over=True, expected_writer_epoch=1)
    with pytest.raises(ServiceError, match="ABORTED") as caught:
        student.create_run("run", lora=lora, take_over=True, expected_writer_epoch=1)
    assert caught.value.reason == "WRITER_FENCED"
    with pytest.raises(ServiceError, match="ABORTED"):
        run.optim_step(STEP)
    assert second.optim_step(STEP).step == 1


def test_a_lost_answer_of_create_run_takes_over_once(
    student: StudentClient, run: StudentRun, fake_student: FakeStudent
) -> None:
    fake_student.lose_take_overs = 1
    second = student.create_run("run", lora=LoraConfig(rank=4), take_over=True)
    with pytest.raises(ServiceError, match="ABORTED"):
        run.optim_step(STEP)
    assert fake_student.epoch == 2
    assert second.optim_step(STEP).step == 1
    ids = [one.attach_id for one in fake_student.attach_requests]
    assert ids[1] == ids[2] != ids[0]


def _always_unavailable(*_: object) -> None:
    raise UnavailableError("away")


def _lose_every_answer(fake: FakeStudent):
    genuine = fake._apply

    def apply(*args):
        genuine(*args)
        _always_unavailable()

    return apply


def test_a_number_that_was_applied_though_its_answer_is_gone_is_not_given_again(
    run: StudentRun, fake_student: FakeStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = fake_student._apply

    def lose_and_forget(*args):
        if fake_student.last:
            raise AlreadyAppliedError("mutation.sequence_number: 1 was already applied")
        genuine(*args)
        _always_unavailable()

    monkeypatch.setattr(fake_student, "_apply", lose_and_forget)
    with pytest.raises(ServiceError, match="OUT_OF_RANGE"):
        run.optim_step(STEP)
    monkeypatch.undo()
    with pytest.raises(UncertainMutationError):
        run.optim_step(STEP)
    assert run.resynchronize() == 1
    assert run.optim_step(STEP).step == 2


def test_threads_take_turns(run: StudentRun, fake_student: FakeStudent) -> None:
    threads = [threading.Thread(target=run.optim_step, args=(STEP,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake_student.last == fake_student.step == 12


def test_an_earlier_writer_is_fenced(student: StudentClient, run: StudentRun) -> None:
    successor = student.create_run("run", lora=LoraConfig(rank=4), take_over=True)
    with pytest.raises(ServiceError, match="ABORTED"):
        run.optim_step(STEP)
    assert successor.optim_step(STEP).step == 1


def test_an_error_of_the_chunks_is_raised_as_it_is(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    def broken():
        raise BrokenStreamError("the teacher went away")
        yield

    with pytest.raises(BrokenStreamError, match="the teacher went away"):
        run.forward_backward([EXAMPLE], batch_settings(), chunks=broken())
    assert fake_student.last == 0
    assert run.optim_step(STEP).step == 1
