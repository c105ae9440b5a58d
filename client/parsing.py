"""Messages to results."""

from collections.abc import Iterator
from contextlib import contextmanager

from client.errors import BrokenStreamError
from client.results import (
    BatchMetrics,
    BatchResult,
    CheckpointInfo,
    Completion,
    ExampleResult,
    ModelInfo,
    RunInfo,
    ServiceLimits,
    StepResult,
    StopReason,
)
from distill.errors import InvalidFieldError
from distill.rows import Rows
from distill.tensors import decode_floats, decode_int32
from distill.tokenizer import TextTokenizer
from distill.v1 import scoring_pb2, student_service_pb2, training_pb2
from distill.wire import rows_from_message

_STOP_REASONS = {
    scoring_pb2.STOP_REASON_STOP: StopReason.STOP,
    scoring_pb2.STOP_REASON_LENGTH: StopReason.LENGTH,
}


@contextmanager
def _service_arrays() -> Iterator[None]:
    """Inside, a malformed tensor is the service's fault, not the caller's."""
    try:
        yield
    except InvalidFieldError as error:
        raise BrokenStreamError(f"the service sent {error}") from None


def decode_model_info(message: scoring_pb2.ModelInfo, teachers: tuple[str, ...] = ()) -> ModelInfo:
    """Decode what a service serves."""
    limits = message.limits
    return ModelInfo(
        name=message.name,
        family=message.family,
        vocab_size=message.vocab_size,
        hidden_size=message.hidden_size,
        layer_count=message.layer_count,
        parameter_count=message.parameter_count,
        compute_dtype=message.compute_dtype,
        weights_version=message.weights_version,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        limits=ServiceLimits(
            max_sequence_tokens=limits.max_sequence_tokens,
            max_top_k=limits.max_top_k,
            max_sequences=limits.max_sequences,
            max_request_tokens=limits.max_request_tokens,
            max_request_bytes=limits.max_request_bytes,
        ),
        teachers=teachers,
    )


def parse_tokenizer(message: scoring_pb2.Tokenizer) -> TextTokenizer:
    """Build the tokenizer that a service sent."""
    return TextTokenizer.from_parts(
        tokenizer_json=message.tokenizer_json,
        chat_template=message.chat_template,
        bos_token=message.bos_token,
        eos_token=message.eos_token,
        end_token_ids=tuple(message.end_token_ids),
    )


@_service_arrays()
def parse_rows(message: scoring_pb2.TopKChunk) -> Rows:
    """The distributions of consecutive rows.

    Raises:
        BrokenStreamError: the arrays do not describe the same rows.
    """
    return rows_from_message(message, "chunk")


@_service_arrays()
def decode_completion(message: scoring_pb2.SampledSequence) -> Completion:
    """Decode a finished sample."""
    if message.stop_reason not in _STOP_REASONS:
        raise BrokenStreamError(f"unknown stop_reason {message.stop_reason}")
    return Completion(
        prompt_index=message.prompt_index,
        sample_index=message.sample_index,
        token_ids=decode_int32(message.token_ids, "sequence.token_ids", (1,)),
        log_probs=decode_floats(message.log_probs, "sequence.log_probs", (1,)),
        stop_reason=_STOP_REASONS[message.stop_reason],
        text=message.text,
    )


@_service_arrays()
def decode_batch_result(message: training_pb2.BatchResult, *, replayed: bool) -> BatchResult:
    """Decode the result of a batch."""
    return BatchResult(
        loss=message.loss,
        row_count=message.row_count,
        token_count=message.token_count,
        pulled_bytes=message.pulled_bytes,
        targets_seconds=message.seconds.targets,
        queue_seconds=message.seconds.queue,
        compute_seconds=message.seconds.compute,
        metrics=_decode_metrics(message.metrics),
        examples=tuple(_decode_example(example) for example in message.examples),
        replayed=replayed,
    )


def _decode_metrics(message: training_pb2.BatchMetrics) -> BatchMetrics:
    present = {descriptor.name: value for descriptor, value in message.ListFields()}
    return BatchMetrics(
        tail_bucket_kl=present.get("tail_bucket_kl"),
        teacher_entropy=present.get("teacher_entropy"),
        student_entropy=present.get("student_entropy"),
        teacher_support_mass=present.get("teacher_support_mass"),
        student_support_mass=present.get("student_support_mass"),
        top_k_overlap=present.get("top_k_overlap"),
        top_1_agreement=present.get("top_1_agreement"),
    )


def _decode_example(message: training_pb2.ExampleResult) -> ExampleResult:
    return ExampleResult(
        loss=message.loss,
        log_probs=decode_floats(message.log_probs, "example.log_probs", (1, 2))
        if message.HasField("log_probs")
        else None,
        row_losses=decode_floats(message.row_losses, "example.row_losses", (1,))
        if message.HasField("row_losses")
        else None,
    )


def decode_step(message: student_service_pb2.OptimStepResponse) -> StepResult:
    """Decode what an optimizer step did."""
    return StepResult(
        step=message.step,
        gradient_norm=message.gradient_norm,
        update_norm=message.update_norm,
        normalizer=message.normalizer,
        weights_version=message.weights_version,
        replayed=message.replayed,
    )


def decode_run(message: training_pb2.Run) -> RunInfo:
    """Decode the state of a run."""
    lora = message.config.HasField("lora")
    return RunInfo(
        run_id=message.run_id,
        trains=f"LoRA rank {message.config.lora.rank}" if lora else "all weights",
        writer_epoch=message.writer_epoch,
        last_sequence_number=message.last_sequence_number,
        step=message.step,
        accumulated_batches=message.accumulated_batches,
        accumulated_rows=message.accumulated_rows,
        accumulated_examples=message.accumulated_examples,
        trainable_parameter_count=message.trainable_parameter_count,
        weights_version=message.weights_version,
    )


def decode_checkpoint(message: training_pb2.Checkpoint) -> CheckpointInfo:
    """Decode a saved state."""
    return CheckpointInfo(
        name=message.name,
        step=message.step,
        sequence_number=message.sequence_number,
        size_bytes=message.size_bytes,
        created_unix_seconds=message.created_unix_seconds,
        weights_version=message.weights_version,
    )
