"""A model of half the layers learns to speak again: pruning, then off-policy distillation.

The student is the teacher without some of its layers, all of whose weights are trained on the
teacher's top-K distributions over a text. Both are measured on other parts of that text.
"""

import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from client.corpus import Corpus, cut_sequences, load_corpus
from client.demo import DemoError
from client.pair import LocalPair, Pair, open_pair
from client.perplexity import (
    Prediction,
    share_won_back,
    student_prediction,
    teacher_prediction,
)
from client.perplexity_curve import CurvePoint, draw_perplexity
from client.recipes.batches import Targets
from client.recipes.metrics import StepMetrics
from client.recipes.off_policy import OffPolicySettings, train_off_policy
from client.report import (
    Reporter,
    append_json_line,
    open_reporter,
    tokens_per_second,
    write_json,
)
from client.run import StudentRun
from client.settings import AdamW
from distill.errors import ModelError

TEACHER_NAME = "main"
"""The student's name for the teacher."""

RESULT_FILES = ("summary.json", "metrics.jsonl", "perplexity.png")
RESULT_DIRECTORIES = ("pruned", "student")


def default_training() -> OffPolicySettings:
    """What won back most in the time of the demo; docs/compress.md has the measurements."""
    return OffPolicySettings(
        step_count=80,
        sequences_per_step=4,
        top_k=20,
        adamw=AdamW(learning_rate=5e-4, max_gradient_norm=1.0),
        warmup_steps=8,
        final_learning_rate_factor=0.05,
        max_seconds=540.0,
    )


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """What to run and where the results go."""

    out: Path
    """Directory of the results; what an earlier run left there is replaced."""

    model: str
    """Reference of the teacher, whose layers the student is made of."""

    keep_layers: str
    """Which of them, as in `distill prune`."""

    text_file: Path | None = None
    """Text to train and measure on. None: the topics of Python's help()."""

    sequence_tokens: int = 256
    """Length of the sequences that the text is cut into."""

    max_heldout_sequences: int = 24
    """Most sequences of held-out text to measure on."""

    measurements: int = 5
    """Measurements in the course of the training, the last one at its end."""

    targets: Targets = Targets.PULL
    """How the distributions travel."""

    training: OffPolicySettings = field(default_factory=default_training)
    """How the student is trained."""


def run_compress(settings: CompressSettings) -> dict[str, Any]:
    """Prune, train and measure; returns what it wrote to summary.json.

    Raises:
        DemoError, DatasetError, DistillError, ServiceStartError, ClientError: the message is for
            a person.
    """
    started = time.monotonic()
    corpus = load_corpus(settings.text_file)
    _clear(settings.out)
    pruned = settings.out / "pruned"
    layers = _prune(settings, pruned)
    with (
        open_reporter(settings.training.step_count) as reporter,
        open_pair(
            LocalPair(model=settings.model, student_model=str(pruned), directory=settings.out),
            teacher_name=TEACHER_NAME,
            targets=settings.targets,
            say=reporter.line,
        ) as pair,
    ):
        work = _Work(settings, corpus, pair, reporter)
        ready_seconds = time.monotonic() - started
        summary = work.run()
    summary |= {
        "kept_layers": layers,
        "ready_seconds": ready_seconds,
        "wall_seconds": time.monotonic() - started,
    }
    write_json(settings.out / "summary.json", summary)
    return summary


def _clear(out: Path) -> None:
    """Remove an earlier run's results, so that none of them can be taken for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULT_FILES:
        (out / name).unlink(missing_ok=True)
    # Directories only where an earlier run made them: these names may be anybody's.
    if (out / "pruned" / "pruning.json").is_file():
        for name in RESULT_DIRECTORIES:
            shutil.rmtree(out / name, ignore_errors=True)


def _prune(settings: CompressSettings, directory: Path) -> tuple[int, ...]:
    try:
        # Only here: a client may be installed without what reads models.
        from distill.models.pruning import prune
    except ModuleNotFoundError as error:
        raise ModelError(f"pruning needs the package {error.name}") from None
    return prune(settings.model, settings.keep_layers, directory)


class _Work:
    """The measurements and the training, once both services run."""

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
            "kl_first": history[0].batch.tail_bucket_kl,
            "kl_last": history[-1].batch.tail_bucket_kl,
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
            "teacher": asdict(teacher_info),
            "student": asdict(student_info),
            "run_id": run.run_id,
            "run_weights_version": state.weights_version,
            "curve": [asdict(point) for point in self._points],
            "curve_drawn": draw_perplexity(
                self._points, teacher.perplexity, settings.out / "perplexity.png"
            ),
            "corpus_digest": self._corpus.digest,
            "python": platform.python_version(),
            "settings": {
                **asdict(settings.training),
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
