"""Off-policy training whose perplexity on held-out text is measured along the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client.recipes.batches import TeacherLink
from client.recipes.metrics import StepMetrics
from client.recipes.off_policy import OffPolicySettings, train_off_policy
from client.recipes.perplexity import Prediction, student_prediction
from client.run import StudentRun
from client.settings import Tokens
from client.student import StudentClient


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A measurement in the course of a training."""

    step: int
    """Optimizer steps so far."""

    tokens: int
    """Tokens trained on so far."""

    seconds: float
    """Time of training so far, without the measurements."""

    perplexity: float
    """On held-out text."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTraining:
    """A training and its measurements."""

    history: Sequence[StepMetrics]
    """The metrics of all steps."""

    points: Sequence[CurvePoint]
    """The measurements, the first before the first step and the last after the last."""

    before: Prediction
    """The student before the first step."""

    after: Prediction
    """The student after the last step."""

    evaluation_seconds: float
    """Time of the measurements."""

    @property
    def tokens_trained(self) -> int:
        """Tokens that the student trained through."""
        return self.points[-1].tokens

    @property
    def training_seconds(self) -> float:
        """Time of all steps."""
        return self.points[-1].seconds


def train_and_measure(
    *,
    student: StudentClient,
    run: StudentRun,
    teacher: TeacherLink,
    training: Sequence[Tokens],
    heldout: Sequence[Tokens],
    settings: OffPolicySettings,
    measurement_count: int,
    on_step: Callable[[StepMetrics], None] = lambda _: None,
    on_point: Callable[[CurvePoint], None] = lambda _: None,
) -> MeasuredTraining:
    """Train a run as `train_off_policy` does, and measure it before, along the way and at the end.

    Args:
        student: the service of the run.
        run: what is trained.
        teacher: which teacher, and how its distributions travel.
        training: token ids of each sequence, two or more.
        heldout: token ids of each sequence to measure on, two or more.
        settings: how to train.
        measurement_count: measurements after the first step, the last one at the end.
        on_step: called after each step.
        on_point: called after each measurement.

    Raises:
        MismatchedPairError, ValueError: as `train_off_policy`.
    """
    course = _Course(student, run, heldout, on_point)
    before = course.measure(step=0)
    marks = [share / measurement_count for share in range(1, measurement_count)]

    def after_step(metrics: StepMetrics) -> None:
        on_step(metrics)
        course.tokens += metrics.student_token_count
        course.training_seconds += metrics.step_seconds
        done = _share_done(settings, metrics.step, course.training_seconds)
        if done < 1 and marks and done >= marks[0]:
            course.measure(step=metrics.step)
            marks[:] = [mark for mark in marks if mark > done]

    history = train_off_policy(
        run=run, teacher=teacher, corpus=training, settings=settings, on_step=after_step
    )
    after = course.measure(step=len(history))
    return MeasuredTraining(
        history=history,
        points=course.points,
        before=before,
        after=after,
        evaluation_seconds=course.evaluation_seconds,
    )


def _share_done(settings: OffPolicySettings, step: int, training_seconds: float) -> float:
    """How much of the training is done, by steps or by time, whichever ends it first."""
    by_steps = step / settings.step_count
    if settings.max_seconds is None:
        return by_steps
    return max(by_steps, training_seconds / settings.max_seconds)


class _Course:
    """The sums and the measurements of a training so far."""

    def __init__(
        self,
        student: StudentClient,
        run: StudentRun,
        heldout: Sequence[Tokens],
        on_point: Callable[[CurvePoint], None],
    ) -> None:
        self._student = student
        self._run = run
        self._heldout = heldout
        self._on_point = on_point
        self.points: list[CurvePoint] = []
        self.tokens = 0
        self.training_seconds = 0.0
        self.evaluation_seconds = 0.0

    def measure(self, *, step: int) -> Prediction:
        """Measure the run's present weights."""
        started = time.monotonic()
        prediction = student_prediction(self._student, self._run, self._heldout)
        self.evaluation_seconds += time.monotonic() - started
        point = CurvePoint(
            step=step,
            tokens=self.tokens,
            seconds=self.training_seconds,
            perplexity=prediction.perplexity,
        )
        self.points.append(point)
        self._on_point(point)
        return prediction
