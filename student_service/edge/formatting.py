"""Formats results as messages."""

from collections.abc import Iterator, Mapping

from distill.errors import LimitExceededError
from distill.limits import MAX_MESSAGE_BYTES
from distill.models.export_file import ExportFile
from distill.network.adapters import LoraSpec
from distill.rpc.messages import message_from
from distill.v1 import student_service_pb2, training_pb2
from student_service.runs.manifests import CheckpointInfo
from student_service.runs.run import Run
from student_service.runs.run_state import RunState
from student_service.runs.sequencer import Committed
from student_service.training.batch import BatchOutcome, TrainingBatch

_BYTES_PER_VALUE = 4

_EXAMPLE_OVERHEAD_BYTES = 128
"""An ExampleResult has at most this beside its values: tags, lengths, shapes and the loss."""

_BATCH_OVERHEAD_BYTES = 4096
"""Everything else in the answer takes at most this."""


def check_result_size(batch: TrainingBatch, header: training_pb2.Batch) -> None:
    """Refuse per-example results that would not fit into one message, before anything is computed.

    When the answer is sent it would be too late, because the batch has been applied by then.

    Raises:
        LimitExceededError: the results are too large. It names the option that asks for most bytes.
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
            f"header.batch.return_{option}", MAX_MESSAGE_BYTES, total, unit="bytes of results"
        )


def format_run(run: Run, at: Committed[RunState] | None = None) -> training_pb2.Run:
    """Describe a run.

    Args:
        run: what does not change.
        at: the moment to describe. None: now.
    """
    at = at or run.sequencer.committed
    return message_from(
        training_pb2.Run,
        run,
        at,
        at.state,
        config=format_run_config(run.lora),
        last_sequence_number=at.sequence_number,
    )


def format_run_config(lora: LoraSpec | None) -> training_pb2.RunConfig:
    """Say what a run trains, with the defaults filled in."""
    if lora is None:
        return training_pb2.RunConfig(full=training_pb2.FullConfig())
    return training_pb2.RunConfig(lora=message_from(training_pb2.LoraConfig, lora))


def format_batch_result(
    outcome: BatchOutcome,
    batch: training_pb2.Batch,
    *,
    pulled_bytes: int,
    seconds: Mapping[str, float],
) -> training_pb2.BatchResult:
    """Loss, metrics, and the per-example results that the header asked for.

    Args:
        outcome: what was computed.
        batch: the header.
        pulled_bytes: bytes of distributions that the student pulled.
        seconds: the fields of `BatchSeconds`.
    """
    # None leaves out what the header did not ask for.
    left_out = {
        name: None for name in ("log_probs", "row_losses") if not getattr(batch, f"return_{name}")
    }
    return message_from(
        training_pb2.BatchResult,
        outcome,
        pulled_bytes=pulled_bytes,
        seconds=training_pb2.BatchSeconds(**seconds),
        metrics=training_pb2.BatchMetrics(**outcome.metrics) if outcome.metrics else None,
        examples=[
            message_from(training_pb2.ExampleResult, example, **left_out)
            for example in outcome.examples
        ],
    )


def format_checkpoint(info: CheckpointInfo) -> training_pb2.Checkpoint:
    """Describe a checkpoint."""
    return message_from(training_pb2.Checkpoint, info)


def format_file(file: ExportFile) -> Iterator[student_service_pb2.ExportWeightsResponse]:
    """An exported file, in pieces and in order. Its content is made as it is sent."""
    offset = 0
    # An empty file has one piece too, so that the client learns that it exists.
    for piece in file.pieces if file.byte_count else [b""]:
        yield student_service_pb2.ExportWeightsResponse(
            file_name=file.name, byte_offset=offset, data=piece, file_bytes=file.byte_count
        )
        offset += len(piece)
