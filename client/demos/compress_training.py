"""A pruned student trained off-policy on a text, and measured on other parts of it."""

import platform
import time
from collections.abc import Sequence
from typing import Any

from client.data.corpus import Corpus, cut_sequences
from client.demos.compress_settings import CompressSettings
from client.demos.errors import DemoError
from client.recipes.metrics import StepMetrics
from client.recipes.off_policy import train_off_policy
from client.recipes.perplexity import (
    Prediction,
    share_won_back,
    student_prediction,
    teacher_prediction,
)
from client.reports.json_values import json_value
from client.reports.perplexity_curve import CurvePoint, draw_perplexity
from client.reports.report import Reporter, append_json_line, tokens_per_second
from client.run import StudentRun
from client.services.pair import Pair


class CompressTraining:
    """The training and the measurements of one demo, once both services run."""

    def __init__(
        self, settings: CompressSettings, corpus: Corpus, pair: Pair, reporter: Reporter
    ) -> None:
        self._settings = settings
        self._corpus = corpus
        self._pair = pair
        self._reporter = reporter
        self._training = self._cut(corpus.training, "training")
        self._heldout = self._cut(corpus.heldout, "held-out")[: settings.max_heldout_sequences]
        self._points: list[CurvePoint] = []
        self._tokens = 0
        self._evaluation_seconds = 0.0
        self._training_seconds = 0.0

    def run(self) -> dict[str, Any]:
        """Train, measure and export; returns the numbers of it for summary.json."""
        settings, pair = self._settings, self._pair
        started = time.monotonic()
        teacher = teacher_prediction(pair.teacher, self._heldout)
        self._evaluation_seconds += time.monotonic() - started
        self._reporter.line(
            f"held out: {len(self._heldout)} sequences of {settings.sequence_tokens} tokens; "
            f"to train on: {len(self._training)}"
        )
        self._reporter.line(f"the teacher: perplexity {teacher.perplexity:.2f}")
        run = pair.student.create_run(time.strftime("compress-%Y%m%d-%H%M%S"), lora=None)
        before = self._measure(run, step=0)
        marks = [share / settings.measurements for share in range(1, settings.measurements)]

        def on_step(metrics: StepMetrics) -> None:
            append_json_line(settings.out / "metrics.jsonl", metrics.flat())
            self._reporter.step(metrics)
            self._tokens += metrics.student_token_count
            self._training_seconds += metrics.step_seconds
            done = self._share_done(metrics.step)
            if done < 1 and marks and done >= marks[0]:
                self._measure(run, step=metrics.step)
                marks[:] = [mark for mark in marks if mark > done]

        history = train_off_policy(
            run=run,
            teacher=pair.link,
            corpus=self._training,
            settings=settings.training,
            on_step=on_step,
        )
        after = self._measure(run, step=len(history))
        run.export_weights(settings.out / "student")
        teacher_info, student_info = pair.teacher.model_info(), pair.student.model_info()
        state = run.state()
        return {
            "teacher_perplexity": teacher.perplexity,
            "perplexity_before": before.perplexity,
            "perplexity_after": after.perplexity,
            "share_won_back": share_won_back(teacher=teacher, before=before, after=after),
            "heldout_tokens": after.token_count,
            "kl_first": history[0].batch["tail_bucket_kl"],
            "kl_last": history[-1].batch["tail_bucket_kl"],
            "tokens_trained": self._tokens,
            "training_seconds": self._training_seconds,
            "scoring_seconds": sum(one.scoring_seconds for one in history),
            "forward_backward_seconds": sum(one.training_seconds for one in history),
            "evaluation_seconds": self._evaluation_seconds,
            "tokens_per_second_teacher": tokens_per_second(
                history, count="teacher_token_count", seconds="scoring_seconds"
            ),
            "tokens_per_second_student": tokens_per_second(
                history, count="student_token_count", seconds="training_seconds"
            ),
            "tokens_per_second_training": tokens_per_second(
                history, count="student_token_count", seconds="step_seconds"
            ),
            "step_count": len(history),
            "teacher": json_value(teacher_info),
            "student": json_value(student_info),
            "run_id": run.run_id,
            "run_weights_version": state.weights_version,
            "curve": [json_value(point) for point in self._points],
            "curve_drawn": draw_perplexity(
                self._points, teacher.perplexity, settings.out / "perplexity.png"
            ),
            "corpus_digest": self._corpus.digest,
            "python": platform.python_version(),
            "settings": {
                **json_value(settings.training),
                "keep_layers": settings.keep_layers,
                "sequence_tokens": settings.sequence_tokens,
                "targets": settings.targets,
            },
        }

    def _share_done(self, step: int) -> float:
        """How much of the training is done, by steps or by time, whichever ends it first."""
        training = self._settings.training
        by_steps = step / training.step_count
        if training.max_seconds is None:
            return by_steps
        return max(by_steps, self._training_seconds / training.max_seconds)

    def _cut(self, blocks: Sequence[str], what: str) -> list[list[int]]:
        length = self._settings.sequence_tokens
        sequences = cut_sequences(self._pair.tokenizer, blocks, length)
        if not sequences:
            raise DemoError(f"the {what} text must have {length} tokens or more")
        return sequences

    def _measure(self, run: StudentRun, *, step: int) -> Prediction:
        started = time.monotonic()
        prediction = student_prediction(self._pair.student, run, self._heldout)
        self._evaluation_seconds += time.monotonic() - started
        self._points.append(
            CurvePoint(
                step=step,
                tokens=self._tokens,
                seconds=self._training_seconds,
                perplexity=prediction.perplexity,
            )
        )
        self._reporter.line(
            f"the student after {step} steps, {self._tokens:,} tokens, "
            f"{self._training_seconds:.0f} s of training: perplexity {prediction.perplexity:.2f}"
        )
        return prediction
