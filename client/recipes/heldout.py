"""How far a student is from its teacher on held-out questions; the same before and after training.

- KL: over the texts that the student should say, which are the teacher's own most probable (greedy)
  answers under its privileged prompt. They are sampled once, so both measurements are over the same
  rows.
- on-policy KL: over the student's own most probable answers at that time. The texts change with the
  student. An untrained student's answers are long, and late in a long text both sides agree, which
  makes their KL small.
- success: the share of these answers that have the demonstrated format.

Both KLs are from the teacher to the student over the top K and one bucket for all other tokens, and
means over all tokens of all answers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from client.data.datasets import Question
from client.recipes.batches import TeacherLink
from client.recipes.evaluation import AnswerScores, score_answers
from client.recipes.sdft import PrivilegedPrompt, SdftSettings, compare_with_teacher
from client.results import Sample
from client.run import StudentRun
from client.settings import SamplingParams
from client.student import StudentClient


@dataclass(frozen=True, kw_only=True)
class Heldout:
    """The questions, and what the teacher makes of them."""

    questions: Sequence[Question]
    """Not trained on."""

    prompts: Sequence[PrivilegedPrompt]
    """Both sides' prompts of each question."""

    teacher_answers: Sequence[Sample]
    """The teacher's greedy answers under its privileged prompts."""

    teacher_scores: AnswerScores
    """Their format and content."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How the student does at one moment."""

    kl: float
    """Over the teacher's answers, in nats per token."""

    on_policy_kl: float
    """Over the student's greedy answers, in nats per token."""

    scores: AnswerScores
    """Format and content of the student's greedy answers."""

    seconds: float
    """Time it took."""


def ask_teacher(
    teacher: TeacherLink,
    questions: Sequence[Question],
    prompts: Sequence[PrivilegedPrompt],
    settings: SdftSettings,
) -> Heldout:
    """Let the teacher answer under its privileged prompts."""
    answers = teacher.client.sample([one.teacher_prompt for one in prompts], _greedy(settings))
    return Heldout(
        questions=questions,
        prompts=prompts,
        teacher_answers=answers,
        teacher_scores=score_answers(questions, answers),
    )


def evaluate_student(
    student: StudentClient,
    run: StudentRun,
    teacher: TeacherLink,
    heldout: Heldout,
    settings: SdftSettings,
) -> Evaluation:
    """Measure the run's present weights; nothing is trained."""
    started = time.monotonic()
    student_prompts = [one.student_prompt for one in heldout.prompts]
    answers = student.under(run.run_id).sample(student_prompts, _greedy(settings))
    return Evaluation(
        kl=_kl(run, teacher, heldout, heldout.teacher_answers, settings),
        on_policy_kl=_kl(run, teacher, heldout, answers, settings),
        scores=score_answers(heldout.questions, answers),
        seconds=time.monotonic() - started,
    )


def _greedy(settings: SdftSettings) -> SamplingParams:
    return SamplingParams(max_tokens=settings.max_completion_tokens, temperature=0)


def _kl(
    run: StudentRun,
    teacher: TeacherLink,
    heldout: Heldout,
    completions: Sequence[Sample],
    settings: SdftSettings,
) -> float:
    result = compare_with_teacher(
        run=run,
        teacher=teacher,
        prompts=heldout.prompts,
        completions=completions,
        settings=settings,
    )
    if "tail_bucket_kl" not in result.metrics:
        raise ValueError("tail_bucket_kl: the student does not report it")
    return result.metrics["tail_bucket_kl"]
