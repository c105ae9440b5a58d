"""The whole system on a real model: a student learns a format that only its teacher is shown.

Teacher and student are the same language model. The teacher's prompt holds two other questions
with their demonstrated answers and the question with its own, as earlier turns of the chat; the
student's prompt is the question alone. The student samples answers, the teacher scores them under
its longer prompt, and the student trains on the teacher's distributions (client/recipes/sdft.py).

client/recipes/heldout.py defines what is reported for held-out questions, before and after.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.data.datasets import Question, check_disjoint, load_questions
from client.errors import DatasetError
from client.recipes.batches import Targets
from client.recipes.demonstrations import SHOWN_QUESTIONS, privileged_prompts
from client.recipes.heldout import Evaluation, ask_teacher, evaluate_student
from client.recipes.metrics import StepMetrics
from client.recipes.sdft import SdftSettings, train_sdft
from client.reports.json_values import json_value
from client.reports.report import (
    Reporter,
    append_json_line,
    draw_curves,
    open_reporter,
    remove_files,
    tokens_per_second,
)
from client.services.pair import LocalPair, Pair, RunningPair, open_pair
from client.settings import LoraConfig
from distill.files import replace_json

RESULT_FILES = ("summary.json", "metrics.jsonl", "curves.png")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What to run and where the results go."""

    out: Path
    """Directory of the results; what an earlier demo left there is replaced."""

    training_file: Path
    """Questions to train on."""

    heldout_file: Path
    """Questions to measure on."""

    services: LocalPair | RunningPair
    """The two services."""

    targets: Targets
    """How the distributions travel."""

    teacher_name: str
    """The student's name for the teacher."""

    lora: LoraConfig
    """What is trained."""

    training: SdftSettings = field(default_factory=SdftSettings)
    """How it is trained."""


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run the demo; returns what it wrote to summary.json.

    Raises:
        ServiceStartError, ClientError: the message is for a person.
    """
    started = time.monotonic()
    training = load_questions(settings.training_file)
    heldout = load_questions(settings.heldout_file)
    check_disjoint(training, heldout)
    if len(training) <= SHOWN_QUESTIONS:
        raise DatasetError(f"{settings.training_file}: must have over {SHOWN_QUESTIONS} questions")
    remove_files(settings.out, RESULT_FILES)
    with (
        open_reporter(settings.training.step_count) as reporter,
        open_pair(
            settings.services,
            teacher_name=settings.teacher_name,
            targets=settings.targets,
            say=reporter.line,
        ) as pair,
    ):
        summary = _run_recipe(settings, pair, training, heldout, reporter, started)
    replace_json(settings.out / "summary.json", summary)
    return summary


def _run_recipe(
    settings: DemoSettings,
    pair: Pair,
    training: Sequence[Question],
    heldout: Sequence[Question],
    reporter: Reporter,
    started: float,
) -> dict[str, Any]:
    shown = random.Random(settings.training.seed)
    training_prompts = privileged_prompts(pair.tokenizer, training, training, shown)
    heldout_prompts = privileged_prompts(pair.tokenizer, heldout, training, shown)
    ready_seconds = time.monotonic() - started

    measured = ask_teacher(pair.link, heldout, heldout_prompts, settings.training)
    teacher_scores = measured.teacher_scores
    reporter.line(
        f"the teacher under its privileged prompt: {_share(teacher_scores.success, heldout)} "
        f"held-out answers in the format, {_share(teacher_scores.exact, heldout)} as demonstrated"
    )
    run = pair.student.create_run(time.strftime("sdft-%Y%m%d-%H%M%S"), lora=settings.lora)
    before = evaluate_student(pair.student, run, pair.link, measured, settings.training)
    reporter.line(_describe("before training", before, heldout))

    def on_step(metrics: StepMetrics) -> None:
        append_json_line(settings.out / "metrics.jsonl", metrics.flat())
        reporter.step(metrics)

    training_started = time.monotonic()
    history = train_sdft(
        student=pair.student,
        run=run,
        teacher=pair.link,
        prompts=training_prompts,
        settings=settings.training,
        on_step=on_step,
    )
    training_seconds = time.monotonic() - training_started
    after = evaluate_student(pair.student, run, pair.link, measured, settings.training)
    reporter.line(_describe("after training", after, heldout))
    if isinstance(settings.services, RunningPair):
        run.save_checkpoint("final")  # the run outlives the demo, so its state can go on
    run.export_weights(settings.out / "adapter")
    curves_drawn = draw_curves(history, settings.out / "curves.png")
    return {
        "objective_first": history[0].objective,
        "objective_last": history[-1].objective,
        "heldout_kl_before": before.kl,
        "heldout_kl_after": after.kl,
        "heldout_on_policy_kl_before": before.on_policy_kl,
        "heldout_on_policy_kl_after": after.on_policy_kl,
        "success_before": before.scores.success,
        "success_after": after.scores.success,
        "success_teacher": teacher_scores.success,
        "exact_before": before.scores.exact,
        "exact_after": after.scores.exact,
        "exact_teacher": teacher_scores.exact,
        "tokens_per_second_teacher": tokens_per_second(
            history, count="teacher_token_count", seconds="scoring_seconds"
        ),
        "tokens_per_second_student": tokens_per_second(
            history, count="student_token_count", seconds="training_seconds"
        ),
        "tokens_per_second_sampling": tokens_per_second(
            history, count="sampled_token_count", seconds="sampling_seconds"
        ),
        "wall_seconds": time.monotonic() - started,
        "ready_seconds": ready_seconds,
        "training_seconds": training_seconds,
        "evaluation_before_seconds": before.seconds,
        "evaluation_after_seconds": after.seconds,
        "sampling_seconds": sum(one.sampling_seconds for one in history),
        "scoring_seconds": sum(one.scoring_seconds for one in history),
        "forward_backward_seconds": sum(one.training_seconds for one in history),
        "step_count": len(history),
        "training_questions": len(training),
        "heldout_questions": len(heldout),
        "run_id": run.run_id,
        "curves": curves_drawn,
        "settings": {
            **json_value(settings.training),
            "lora": json_value(settings.lora),
            "targets": settings.targets,
        },
        "examples": [
            {
                "question": question.question,
                "before": first,
                "after": last,
                "demonstration": question.demonstration,
            }
            for question, first, last in zip(
                heldout, before.scores.answers, after.scores.answers, strict=True
            )
        ],
    }


def _share(share: float, questions: Sequence[Question]) -> str:
    return f"{round(share * len(questions))}/{len(questions)}"


def _describe(moment: str, evaluation: Evaluation, questions: Sequence[Question]) -> str:
    scores = evaluation.scores
    return (
        f"the student {moment}: {_share(scores.success, questions)} held-out answers in the "
        f"format, {_share(scores.exact, questions)} as demonstrated, KL {evaluation.kl:.3f}, "
        f"on-policy {evaluation.on_policy_kl:.3f}"
    )
