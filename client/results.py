"""What the services answer: the contract's own messages where they hold scalars alone.

What holds arrays is NumPy in a frozen dataclass, whose fields have the names of the message's.
Distributions come as `distill.rows.ScoredRows`.

Letters: N tokens of a completion or target rows, K support size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from client.errors import MismatchedPairError
from distill.arrays import FloatArray
from distill.samples import Sample
from distill.tokenizer import describe_mismatch
from distill.v1 import training_pb2
from distill.v1.scoring_pb2 import Limits, ModelInfo
from distill.v1.student_service_pb2 import DiscardGradientResponse, OptimStepResponse
from distill.v1.training_pb2 import Checkpoint, Run

__all__ = [
    "METRIC_NAMES",
    "BatchResult",
    "Checkpoint",
    "DiscardGradientResponse",
    "ExampleResult",
    "Limits",
    "ModelInfo",
    "OptimStepResponse",
    "Run",
    "Sample",
    "check_pair",
]

METRIC_NAMES = tuple(each.name for each in training_pb2.BatchMetrics.DESCRIPTOR.fields)
"""Names that `BatchResult.metrics` may hold; the proto says what each measures."""


@dataclass(frozen=True, kw_only=True)
class ExampleResult:
    """The result of one example; fields as in the message of this name."""

    loss: float
    """Loss after the reduction."""

    log_probs: FloatArray | None = field(metadata={"ranks": (1, 2), "optional": True})
    """Student's log-probs at the targets, [N] or [N, K]; None unless asked for."""

    row_losses: FloatArray | None = field(metadata={"ranks": (1,), "optional": True})
    """Loss of each target row, [N]; None unless asked for."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The result of a batch."""

    totals: training_pb2.BatchResult
    """The scalars of the answer: `loss`, `row_count`, `token_count`, `pulled_bytes`, `seconds`."""

    metrics: Mapping[str, float]
    """Means over the weighted rows, by the names of the message `BatchMetrics`. A metric that the
    batch's targets do not define is not in it: reading one is a KeyError."""

    examples: tuple[ExampleResult, ...]
    """In the order of the examples."""

    replayed: bool = False
    """True when the answer repeats one given before (after a retry)."""

    @property
    def loss(self) -> float:
        """Sum over the examples, after the reduction."""
        return self.totals.loss


def check_pair(teacher: ModelInfo, student: ModelInfo) -> None:
    """Refuse a teacher and a student that name tokens differently.

    Their vocabulary sizes may differ: models of one tokenizer are padded to different sizes.

    Raises:
        MismatchedPairError: another tokenizer; names both fingerprints and what to do.
    """
    if teacher.tokenizer_fingerprint != student.tokenizer_fingerprint:
        raise MismatchedPairError(
            describe_mismatch(
                teacher=f"the teacher {teacher.name}",
                teacher_fingerprint=teacher.tokenizer_fingerprint,
                student=f"the student {student.name}",
                student_fingerprint=student.tokenizer_fingerprint,
            )
        )
