"""What a recipe reports after each step."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from client.recipes.batches import Transfer
from client.results import METRIC_NAMES, OptimStepResponse


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One training step."""

    step: int
    """Optimizer steps of the run so far."""

    objective: float
    """The minimised objective, as a mean over the target rows."""

    batch: Mapping[str, float]
    """The batch's own metrics, such as its KL with the tail: means over the target rows."""

    row_count: int
    """Target rows."""

    student_token_count: int
    """Tokens that the student trained through."""

    teacher_token_count: int
    """Tokens that the teacher read."""

    sampled_token_count: int
    """Tokens that the student sampled; 0 off-policy."""

    target_bytes: int
    """Bytes of distributions that travelled."""

    sampling_seconds: float
    """Time of sampling; 0 off-policy."""

    scoring_seconds: float
    """Time until the student had the targets."""

    training_seconds: float
    """Time of forward and backward on the student."""

    step_seconds: float
    """Time of the whole step, optimizer included."""

    gradient_norm: float
    """Global norm of the gradient per row, before clipping."""

    update_norm: float
    """Global norm of the change of the parameters."""

    def flat(self) -> dict[str, float | int | None]:
        """All values in one level, for a line of JSON; None for a metric that is not defined."""
        values = asdict(self)
        return {**dict.fromkeys(METRIC_NAMES), **values.pop("batch"), **values}


def step_metrics(
    transfer: Transfer,
    step: OptimStepResponse,
    *,
    teacher_token_count: int,
    sampled_token_count: int,
    sampling_seconds: float,
    step_seconds: float,
) -> StepMetrics:
    """Gather the metrics of one step."""
    result = transfer.result
    return StepMetrics(
        step=step.step,
        objective=result.loss / max(result.totals.row_count, 1),
        batch=result.metrics,
        row_count=result.totals.row_count,
        student_token_count=result.totals.token_count,
        teacher_token_count=teacher_token_count,
        sampled_token_count=sampled_token_count,
        target_bytes=transfer.target_bytes,
        sampling_seconds=sampling_seconds,
        scoring_seconds=transfer.scoring_seconds,
        training_seconds=result.totals.seconds.compute,
        step_seconds=step_seconds,
        gradient_norm=step.gradient_norm,
        update_norm=step.update_norm,
    )
