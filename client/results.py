"""What the services answer, as NumPy arrays in frozen dataclasses.

Letters: N target rows, K support size. Distributions come as `distill.rows.Rows`.
"""

from dataclasses import dataclass
from enum import StrEnum

from client.errors import MismatchedPairError
from distill.arrays import FloatArray, Int32Array
from distill.tokenizer import describe_mismatch


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Upper bounds of a request."""

    max_sequence_tokens: int
    """Longest sequence, in tokens."""

    max_top_k: int
    """Largest support size K."""

    max_sequences: int
    """Most prompts, or examples, in one request."""

    max_request_tokens: int
    """Most tokens in one request."""

    max_request_bytes: int
    """Most bytes of one request."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a service serves and accepts."""

    name: str
    """The name the service was started with."""

    family: str
    """Model family, for example "llama"."""

    vocab_size: int
    """V: every token id lies in [0, V)."""

    hidden_size: int
    """D."""

    layer_count: int
    """Number of decoder layers."""

    parameter_count: int
    """Parameters of the base model."""

    compute_dtype: str
    """ "float32" or "bfloat16"; logits are always float32."""

    weights_version: str
    """Digest of the base weights."""

    tokenizer_fingerprint: str
    """Digest of the vocabulary."""

    limits: ServiceLimits
    """What the service accepts."""

    teachers: tuple[str, ...] = ()
    """Names of the teachers that a student can pull from; empty for a teacher."""


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


class StopReason(StrEnum):
    """Why a sample ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished sample."""

    prompt_index: int
    """Index of the prompt in the request."""

    sample_index: int
    """Index among the samples of its prompt."""

    token_ids: Int32Array
    """Generated tokens, [N], the stop token included."""

    log_probs: FloatArray
    """Log-probability of each generated token over the full vocabulary, [N]."""

    stop_reason: StopReason
    """Why it ended."""

    text: str
    """The decoded text without special tokens."""


@dataclass(frozen=True, kw_only=True)
class BatchMetrics:
    """Means over the weighted target rows; None where the targets do not define one."""

    tail_bucket_kl: float | None
    """KL(teacher || student) over the support and one bucket for the tail, in nats."""

    teacher_entropy: float | None
    """Entropy of the teacher, in nats."""

    student_entropy: float | None
    """Entropy of the student, in nats."""

    teacher_support_mass: float | None
    """Teacher probability on the support."""

    student_support_mass: float | None
    """Student probability on the support, each token once."""

    top_k_overlap: float | None
    """Share of the teacher's support that is in the student's top K."""

    top_1_agreement: float | None
    """Share of rows where both have the same most probable token; None where the support of a row
    may not hold the teacher's."""


@dataclass(frozen=True, kw_only=True)
class ExampleResult:
    """The result of one example."""

    loss: float
    """Loss after the reduction."""

    log_probs: FloatArray | None
    """Student's log-probs at the targets, [N] or [N, K]; None unless asked for."""

    row_losses: FloatArray | None
    """Loss of each target row, [N]; None unless asked for."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The result of a batch."""

    loss: float
    """Sum over the examples, after the reduction."""

    row_count: int
    """Weighted target rows."""

    token_count: int
    """Input tokens."""

    pulled_bytes: int
    """Bytes of distributions that the student pulled; 0 when they came inline."""

    targets_seconds: float
    """Time the student took to receive or pull the targets."""

    queue_seconds: float
    """Time the batch waited for the device."""

    compute_seconds: float
    """Time of forward and backward."""

    metrics: BatchMetrics
    """Means over the weighted rows."""

    examples: tuple[ExampleResult, ...]
    """In the order of the examples."""

    replayed: bool = False
    """True when the answer repeats one given before (after a retry)."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an optimizer step did."""

    step: int
    """Optimizer steps of the run so far."""

    gradient_norm: float
    """Global norm of the normalised gradient before clipping."""

    update_norm: float
    """Global norm of the change of the parameters."""

    normalizer: float
    """What the gradient sum was divided by."""

    weights_version: str
    """Identifies the weights after the step."""

    replayed: bool
    """True when the answer repeats one given before (after a retry)."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The state of a run."""

    run_id: str
    """Name of the run."""

    trains: str
    """What it trains, for example "lora rank 16" or "all weights"."""

    writer_epoch: int
    """Epoch of the current writer."""

    last_sequence_number: int
    """The last applied sequence number."""

    step: int
    """Optimizer steps so far."""

    accumulated_batches: int
    """Batches in the gradient sum."""

    accumulated_rows: int
    """Weighted target rows in the gradient sum."""

    accumulated_examples: int
    """Examples in the gradient sum."""

    trainable_parameter_count: int
    """Number of trainable parameters."""

    weights_version: str
    """Identifies the current weights."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A saved state of a run."""

    name: str
    """Name of the checkpoint."""

    step: int
    """Optimizer steps at that time."""

    sequence_number: int
    """Sequence number of the save."""

    size_bytes: int
    """Bytes on disk."""

    created_unix_seconds: float
    """Seconds since the Unix epoch."""

    weights_version: str
    """Identifies the weights."""
