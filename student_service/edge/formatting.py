"""Results into messages."""

from collections.abc import Iterator
from pathlib import Path

from distill.errors import LimitExceededError
from distill.limits import MAX_MESSAGE_BYTES
from distill.network.adapters import LoraSpec
from distill.tensors import encode_floats
from distill.v1 import student_service_pb2, training_pb2
from student_service.runs.checkpoints import CheckpointInfo
from student_service.runs.run import BatchTiming, Run
from student_service.training.batch import BatchMetrics, BatchOutcome, TrainingBatch

EXPORT_PIECE_BYTES = 1 << 20
"""Size of a piece of an exported file."""

_BYTES_PER_VALUE = 4

_EXAMPLE_OVERHEAD_BYTES = 128
"""At least what an ExampleResult has beside its values: tags, lengths, shapes and the loss."""

_BATCH_OVERHEAD_BYTES = 4096
"""The same of everything else in the answer."""


def check_result_size(batch: TrainingBatch, header: training_pb2.Batch) -> None:
    """Refuse per-example results that would not fit into one message, before anything is computed.

    Found out when the answer is sent, it would be too late: the batch has been applied.

    Raises:
        LimitExceededError: naming the option that asks for most of them.
    """
    log_prob_bytes = row_loss_bytes = 0
    for example in batch.examples:
        if header.return_log_probs:
            log_prob_bytes += _BYTES_PER_VALUE * example.token_ids.size
        if header.return_row_losses:
            row_loss_bytes += _BYTES_PER_VALUE * len(example.token_ids)
    overhead = _BATCH_OVERHEAD_BYTES + _EXAMPLE_OVERHEAD_BYTES * len(batch.examples)
    total = log_prob_bytes + row_loss_bytes + overhead
    if total > MAX_MESSAGE_BYTES:
        option = "log_probs" if log_prob_bytes >= row_loss_bytes else "row_losses"
        raise LimitExceededError(
            f"batch.return_{option}", MAX_MESSAGE_BYTES, total, unit="bytes of results"
        )


def encode_run(run: Run) -> training_pb2.Run:
    """Describe a run."""
    state = run.state
    return training_pb2.Run(
        run_id=run.run_id,
        config=encode_run_config(run.lora),
        writer_epoch=run.sequencer.epoch,
        last_sequence_number=run.sequencer.last,
        step=state.step,
        accumulated_batches=state.accumulated_batches,
        accumulated_rows=state.accumulated_rows,
        accumulated_examples=state.accumulated_examples,
        trainable_parameter_count=run.trainable_parameter_count,
        weights_version=state.weights_version,
    )


def encode_run_config(lora: LoraSpec | None) -> training_pb2.RunConfig:
    """Say what a run trains, with the defaults filled in."""
    if lora is None:
        return training_pb2.RunConfig(full=training_pb2.FullConfig())
    return training_pb2.RunConfig(
        lora=training_pb2.LoraConfig(
            rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, seed=lora.seed
        )
    )


def encode_batch_result(
    outcome: BatchOutcome,
    timing: BatchTiming,
    batch: training_pb2.Batch,
    *,
    pulled_bytes: int,
    target_seconds: float,
) -> training_pb2.BatchResult:
    """Loss, metrics, and the per-example results that the header asked for."""
    examples = [
        training_pb2.ExampleResult(
            loss=example.loss,
            log_probs=encode_floats(example.log_probs) if batch.return_log_probs else None,
            row_losses=encode_floats(example.row_losses) if batch.return_row_losses else None,
        )
        for example in outcome.examples
    ]
    return training_pb2.BatchResult(
        loss=outcome.loss,
        row_count=outcome.row_count,
        token_count=outcome.token_count,
        pulled_bytes=pulled_bytes,
        seconds=training_pb2.BatchSeconds(
            targets=target_seconds, queue=timing.queue_seconds, compute=timing.compute_seconds
        ),
        metrics=_encode_metrics(outcome.metrics),
        examples=examples,
    )


def _encode_metrics(metrics: BatchMetrics | None) -> training_pb2.BatchMetrics | None:
    if metrics is None:
        return None
    return training_pb2.BatchMetrics(
        tail_bucket_kl=metrics.tail_bucket_kl,
        teacher_entropy=metrics.teacher_entropy,
        student_entropy=metrics.student_entropy,
        teacher_support_mass=metrics.teacher_support_mass,
        student_support_mass=metrics.student_support_mass,
        top_k_overlap=metrics.top_k_overlap,
        top_1_agreement=metrics.top_1_agreement,
    )


def encode_checkpoint(info: CheckpointInfo) -> training_pb2.Checkpoint:
    """Describe a checkpoint."""
    return training_pb2.Checkpoint(
        name=info.name,
        step=info.step,
        sequence_number=info.sequence_number,
        size_bytes=info.size_bytes,
        created_unix_seconds=info.created_unix_seconds,
        weights_version=info.weights_version,
    )


def encode_file(path: Path) -> Iterator[student_service_pb2.ExportWeightsResponse]:
    """An exported file, in pieces and in order."""
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while True:
            piece = file.read(EXPORT_PIECE_BYTES)
            # An empty file still has one piece: the client learns that it exists.
            if not piece and offset:
                return
            yield student_service_pb2.ExportWeightsResponse(
                file_name=path.name, byte_offset=offset, data=piece, file_bytes=size
            )
            offset += len(piece)
            if offset >= size:
                return
