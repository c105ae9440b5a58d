import math
import threading

import pytest

from client.errors import MismatchedPairError, ServiceError
from client.recipes.batches import Targets, TeacherLink
from client.recipes.metrics import StepMetrics
from client.recipes.off_policy import OffPolicySettings, tokenize_corpus, train_off_policy
from client.recipes.sdft import (
    PrivilegedPrompt,
    SdftSettings,
    compare_with_teacher,
    sample_completions,
    train_sdft,
)
from client.run import StudentRun
from client.settings import AdamW, LoraConfig
from client.student import StudentClient
from client.teacher import TeacherClient
from tests.client.fake_model import fake_tokenizer
from tests.client.fake_student import FakeStudent
from tests.client.requests import EXAMPLE, pull

PROMPTS = [
    PrivilegedPrompt(student_prompt=[7, index], teacher_prompt=[9, 9, 9, 7, index])
    for index in range(10, 15)
]


def link(teacher: TeacherClient, targets: Targets) -> TeacherLink:
    return TeacherLink(client=teacher, name="main", targets=targets)


@pytest.mark.parametrize("targets", list(Targets))
def test_sdft_trains_on_the_students_own_samples(
    student: StudentClient, fake_student: FakeStudent, teacher: TeacherClient, targets: Targets
) -> None:
    run = student.create_run("run", lora=LoraConfig(rank=16))
    seen: list[StepMetrics] = []
    history = train_sdft(
        student=student,
        run=run,
        teacher=link(teacher, targets),
        prompts=PROMPTS,
        settings=SdftSettings(step_count=3, prompts_per_step=2, top_k=4),
        on_step=seen.append,
    )
    assert seen == history
    assert [one.step for one in history] == [1, 2, 3]
    assert fake_student.done == ["Sample", "ForwardBackward", "OptimStep"] * 3
    assert history[0].objective == 1.0  # the fake's loss is one per row before the first step
    assert all(one.target_bytes > 0 for one in history)
    assert all(math.isfinite(value) for one in history for value in _numbers(one))
    for header, examples, chunks in fake_student.batches:
        assert header.batch.HasField("pull") == (targets is Targets.PULL)
        assert bool(chunks) == (targets is Targets.INLINE)
        for example in examples:
            assert example.target_offset == 1
            assert example.distribution_targets.prompt_offset == 5
    relayed_rows = {
        (chunk.prompt_index, chunk.first_row + row)
        for chunk in fake_student.batches[0][2]
        for row in range(len(chunk.entropies.values))
    }
    if targets is Targets.INLINE:
        wanted = {
            (target.prompt_index, target.prompt_offset + row)
            for target in (one.distribution_targets for one in fake_student.batches[0][1])
            for row in range(target.row_count)
        }
        assert relayed_rows == wanted


def _numbers(metrics: StepMetrics) -> list[float]:
    return [value for value in metrics.flat().values() if value is not None]


@pytest.mark.parametrize(("step_count", "factors"), [(1, [1]), (3, [1, 0.6, 0.2])])
def test_the_learning_rate_falls_linearly(
    student: StudentClient,
    fake_student: FakeStudent,
    teacher: TeacherClient,
    step_count: int,
    factors: list[float],
) -> None:
    settings = SdftSettings(
        step_count=step_count,
        prompts_per_step=1,
        adamw=AdamW(learning_rate=0.5),
        final_learning_rate_factor=0.2,
    )
    train_sdft(
        student=student,
        run=student.create_run("run", lora=LoraConfig(rank=16)),
        teacher=link(teacher, Targets.PULL),
        prompts=PROMPTS,
        settings=settings,
    )
    assert fake_student.learning_rates == pytest.approx([0.5 * factor for factor in factors])


def test_comparing_changes_nothing(
    student: StudentClient, fake_student: FakeStudent, teacher: TeacherClient
) -> None:
    run = student.create_run("run", lora=LoraConfig(rank=16))
    settings = SdftSettings()
    result = compare_with_teacher(
        run=run,
        teacher=link(teacher, Targets.PULL),
        prompts=PROMPTS,
        completions=sample_completions(student, run, PROMPTS, settings, seed=1),
        settings=settings,
    )
    assert result.metrics["tail_bucket_kl"] == 3.0
    assert len(fake_student.batches[0][1]) == len(PROMPTS)
    assert fake_student.calls == ["Sample", "Forward"]
    assert fake_student.last == 0


def test_off_policy_targets_every_token_but_the_first(
    student: StudentClient, fake_student: FakeStudent, teacher: TeacherClient
) -> None:
    run = student.create_run("run", lora=None)
    corpus = [[1, 2, 3, 4], [5, 6]]
    settings = OffPolicySettings(
        step_count=2, sequences_per_step=2, top_k=3, objective="renormalized"
    )
    history = train_off_policy(
        run=run, teacher=link(teacher, Targets.INLINE), corpus=corpus, settings=settings
    )
    assert [one.row_count for one in history] == [4, 4]
    assert history[0].sampled_token_count == 0
    _, examples, chunks = fake_student.batches[0]
    assert sorted(list(one.input_tokens.values) for one in examples) == [[1, 2, 3], [5]]
    assert {one.distribution_targets.prompt_offset for one in examples} == {1}
    assert sum(len(chunk.entropies.values) for chunk in chunks) == 4


def test_training_ends_with_the_step_in_which_its_time_is_over(
    student: StudentClient, fake_student: FakeStudent, teacher: TeacherClient
) -> None:
    settings = OffPolicySettings(
        step_count=50, sequences_per_step=1, top_k=3, max_seconds=1e-6, adamw=AdamW(learning_rate=1)
    )
    history = train_off_policy(
        run=student.create_run("run", lora=None),
        teacher=link(teacher, Targets.PULL),
        corpus=[[1, 2, 3]],
        settings=settings,
    )
    assert len(history) == 1
    assert fake_student.learning_rates == [1]


def _train(recipe: str, student: StudentClient, run: StudentRun, teacher: TeacherClient) -> None:
    if recipe == "sdft":
        train_sdft(
            student=student,
            run=run,
            teacher=link(teacher, Targets.PULL),
            prompts=PROMPTS,
            settings=SdftSettings(step_count=1, prompts_per_step=1),
        )
    else:
        train_off_policy(
            run=run,
            teacher=link(teacher, Targets.PULL),
            corpus=[[1, 2, 3]],
            settings=OffPolicySettings(step_count=1, sequences_per_step=1),
        )


@pytest.mark.parametrize("recipe", ["sdft", "off_policy"])
def test_a_step_is_on_its_way_before_its_batch_is_answered(
    student: StudentClient, fake_student: FakeStudent, teacher: TeacherClient, recipe: str
) -> None:
    meeting = threading.Barrier(2, timeout=5)  # breaks unless both are there at once

    def meet(_: int) -> None:
        meeting.wait()

    fake_student.on_arrival = meet
    _train(recipe, student, student.create_run("run", lora=LoraConfig(rank=4)), teacher)
    assert fake_student.done[-2:] == ["ForwardBackward", "OptimStep"]


@pytest.mark.parametrize("recipe", ["sdft", "off_policy"])
def test_a_refused_batch_is_what_a_recipe_raises_and_no_step_is_taken(
    student: StudentClient, fake_student: FakeStudent, teacher: TeacherClient, recipe: str
) -> None:
    fake_student.refuse_next = True
    run = student.create_run("run", lora=LoraConfig(rank=4))
    with pytest.raises(ServiceError, match="refused by the test"):
        _train(recipe, student, run, teacher)
    assert (fake_student.last, fake_student.step) == (0, 0)
    _train(recipe, student, run, teacher)
    assert fake_student.step == 1


@pytest.mark.parametrize("recipe", ["sdft", "off_policy"])
def test_a_gradient_that_another_script_left_is_dropped_and_never_stepped(
    student: StudentClient,
    fake_student: FakeStudent,
    teacher: TeacherClient,
    caplog: pytest.LogCaptureFixture,
    recipe: str,
) -> None:
    run = student.create_run("run", lora=LoraConfig(rank=4))
    _train(recipe, student, run, teacher)
    assert "DiscardGradient" not in fake_student.calls
    (clean,) = fake_student.normalizers
    run.forward_backward([EXAMPLE], pull=pull())  # and the script ends before its step
    again = student.create_run("run", lora=LoraConfig(rank=4), take_over=True)
    _train(recipe, student, again, teacher)
    assert fake_student.normalizers == [clean, clean]
    (warning,) = caplog.messages
    assert warning.startswith("run run: dropped a gradient")
    assert "batches 1, rows 3, examples 1" in warning


def test_a_teacher_of_another_tokenizer_is_not_relayed(
    student: StudentClient,
    fake_student: FakeStudent,
    teacher: TeacherClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = student.create_run("run", lora=None)
    monkeypatch.setattr(fake_student.tokenizer, "fingerprint", "another")
    with pytest.raises(MismatchedPairError, match=r"another.*start both with models of one"):
        train_off_policy(
            run=run,
            teacher=link(teacher, Targets.INLINE),
            corpus=[[1, 2, 3]],
            settings=OffPolicySettings(step_count=1),
        )
    assert fake_student.calls == []


def test_a_corpus_without_anything_to_predict_is_refused(
    student: StudentClient, teacher: TeacherClient
) -> None:
    run = student.create_run("run", lora=None)
    for corpus, problem in (([], "must not be empty"), ([[1, 2], [3]], r"corpus\[1\]")):
        with pytest.raises(ValueError, match=problem):
            train_off_policy(
                run=run,
                teacher=link(teacher, Targets.PULL),
                corpus=corpus,
                settings=OffPolicySettings(step_count=1),
            )


def test_a_text_is_cut_into_sequences_without_losing_tokens() -> None:
    tokenizer = fake_tokenizer()
    text = "The student learns from the whole distribution."
    whole = tokenizer.encode(text)
    pieces = tokenize_corpus(tokenizer, [text, "", "x"], max_tokens=len(whole) - 2)
    assert pieces == [whole[:-2], whole[-2:]]
