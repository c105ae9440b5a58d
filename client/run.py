"""A run on a student service, as its one writer sees it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from client.connection import Connection, Deadline
from client.download import write_files
from client.parsing import parse_batch_result
from client.results import (
    BatchResult,
    Checkpoint,
    DiscardGradientResponse,
    ModelInfo,
    OptimStepResponse,
    Run,
)
from client.sequence import MutationSequence
from client.settings import AdamW, Batch, Example, PulledScoring, WeightsRef, batch_settings
from distill.enum_names import enum_value
from distill.v1 import scoring_pb2, student_service_pb2_grpc, training_pb2
from distill.v1 import student_service_pb2 as messages
from distill.v1.training_pb2 import RunConfig

Chunks = Iterable[scoring_pb2.TopKChunk]

_Mutating = (
    messages.OptimStepRequest
    | messages.DiscardGradientRequest
    | messages.SaveCheckpointRequest
    | messages.LoadCheckpointRequest
    | messages.DeleteRunRequest
)


class StudentRun:
    """A handle of a run; it owns the run's writer epoch and sequence numbers.

    Safe to use from many threads: calls that change the run take turns. A refused call changes
    nothing, and the next may follow. A call that ends without an answer (its deadline passed, the
    service stayed away) may have been applied: the next one raises UncertainMutationError until
    `resynchronize` has settled it.
    """

    def __init__(
        self,
        connection: Connection,
        stub: student_service_pb2_grpc.StudentServiceStub,
        created: Run,
        writer_epoch: int,
    ) -> None:
        self.run_id = created.run_id
        self.created = created
        # A copy: `created` is the caller's to look at, and to change.
        self._config = RunConfig()
        self._config.CopyFrom(created.config)
        self._connection = connection
        self._stub = stub
        self._sequence = MutationSequence(
            run_id=created.run_id,
            writer_epoch=writer_epoch,
            last_sequence_number=created.last_sequence_number,
        )

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Describe the base model of the run."""
        request = messages.StudentServiceGetModelInfoRequest()
        response: messages.StudentServiceGetModelInfoResponse = self._connection.ask(
            self._stub.GetModelInfo, request, timeout_seconds
        )
        return response.model

    def state(self, *, timeout_seconds: float | None = None) -> Run:
        """Ask for the run's state."""
        request = messages.GetRunRequest(run_id=self.run_id)
        response: messages.GetRunResponse = self._connection.ask(
            self._stub.GetRun, request, timeout_seconds
        )
        return response.run

    def resynchronize(self, *, timeout_seconds: float | None = None) -> bool:
        """After a call without an answer: True when it was applied, False when it never will be.

        Waits for what the service still has under way, and takes the run over from this handle
        itself, so that a copy of the request on its way is refused when it arrives.

        Raises:
            ServiceError: ABORTED (WRITER_FENCED) when another writer has taken the run over;
                NOT_FOUND when the run is gone.
        """
        deadline = self._connection.deadline(timeout_seconds)
        return self._sequence.resynchronize(
            lambda attach_id, epoch: self._take_over(attach_id, epoch, deadline)
        )

    def forward_backward(
        self,
        examples: Sequence[Example],
        settings: Batch | None = None,
        *,
        pull: PulledScoring | None = None,
        chunks: Chunks = (),
        timeout_seconds: float | None = None,
    ) -> BatchResult:
        """Add the gradient of a batch to the run's gradient sum.

        Args:
            examples: the batch; all with token targets or all with distributions.
            settings: what is minimised. None: `batch_settings()`, the objective tail_bucket.
            pull: the teacher that the student asks for the distributions.
            chunks: the distributions as they come from a teacher, when they are not pulled.
            timeout_seconds: deadline of the call.

        Raises:
            ServiceError: the service refused; nothing changed.
        """
        batch = _batch(settings, len(examples), pull)
        # All parts are made before the call, so that a source that fails does so before anything is
        # sent. The examples are copied, so that a retry sends what the first attempt sent; chunks
        # are relayed as they are.
        sent = [messages.ForwardBackwardRequest(example=example) for example in examples]
        relayed = tuple(chunks)
        deadline = self._connection.deadline(timeout_seconds)

        def parts(header: training_pb2.Mutation) -> Iterator[messages.ForwardBackwardRequest]:
            yield messages.ForwardBackwardRequest(
                header=messages.ForwardBackwardHeader(mutation=header, batch=batch)
            )
            yield from sent
            for chunk in relayed:
                yield messages.ForwardBackwardRequest(chunk=chunk)
            if pull is None:
                yield messages.ForwardBackwardRequest(end=_end(relayed))

        def mutate(header: training_pb2.Mutation) -> messages.ForwardBackwardResponse:
            response: messages.ForwardBackwardResponse = self._connection.call(
                lambda timeout: self._stub.ForwardBackward(parts(header), timeout=timeout),
                deadline,
            )
            return response

        response = self._sequence.apply("forward_backward", mutate)
        return parse_batch_result(response.result, replayed=response.replayed)

    def forward(
        self,
        examples: Sequence[Example],
        settings: Batch | None = None,
        *,
        pull: PulledScoring | None = None,
        chunks: Chunks = (),
        weights: WeightsRef | None = None,
        timeout_seconds: float | None = None,
    ) -> BatchResult:
        """Compute the loss and metrics of a batch; the run does not change.

        Args are those of `forward_backward`, and `weights`: which weights of the run. None: the
        current ones.
        """
        batch = _batch(settings, len(examples), pull)
        sent = [messages.ForwardRequest(example=example) for example in examples]  # as above
        relayed = tuple(chunks)

        def parts() -> Iterator[messages.ForwardRequest]:
            header = messages.ForwardHeader(run_id=self.run_id, batch=batch, weights=weights)
            yield messages.ForwardRequest(header=header)
            yield from sent
            for chunk in relayed:
                yield messages.ForwardRequest(chunk=chunk)
            if pull is None:
                yield messages.ForwardRequest(end=_end(relayed))

        response = self._connection.call(
            lambda timeout: self._stub.Forward(parts(), timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return parse_batch_result(response.result)

    def optim_step(
        self,
        adamw: AdamW,
        *,
        normalization: str = "rows",
        timeout_seconds: float | None = None,
    ) -> OptimStepResponse:
        """Apply the gradient sum with AdamW and clear it.

        Args:
            adamw: settings of this step.
            normalization: what the gradient sum is divided by: the number of "rows" or of
                "examples" in it, or by nothing, "none".
            timeout_seconds: deadline of the call.

        Raises:
            ValueError: a normalization with another name.
        """
        request = messages.OptimStepRequest(
            adamw=adamw,
            normalization=enum_value(
                training_pb2.GradientNormalization, normalization, "normalization"
            ),
        )
        response: OptimStepResponse = self._mutate(
            "optim_step", self._stub.OptimStep, request, timeout_seconds
        )
        return response

    def discard_gradient(self, *, timeout_seconds: float | None = None) -> DiscardGradientResponse:
        """Drop the gradient sum; without one, nothing happens.

        For whoever goes on with a run in which another script may have left a gradient: the next
        `optim_step` would apply it with its own.
        """
        request = messages.DiscardGradientRequest()
        response: DiscardGradientResponse = self._mutate(
            "discard_gradient", self._stub.DiscardGradient, request, timeout_seconds
        )
        return response

    def save_checkpoint(
        self, name: str, *, overwrite: bool = False, timeout_seconds: float | None = None
    ) -> Checkpoint:
        """Save the whole state of the run; it appears whole or not at all."""
        request = messages.SaveCheckpointRequest(name=name, overwrite=overwrite)
        response: messages.SaveCheckpointResponse = self._mutate(
            "save_checkpoint", self._stub.SaveCheckpoint, request, timeout_seconds
        )
        return response.checkpoint

    def load_checkpoint(self, name: str, *, timeout_seconds: float | None = None) -> Run:
        """Replace the state of the run by a checkpoint's; the run's sequence goes on."""
        request = messages.LoadCheckpointRequest(name=name)
        response: messages.LoadCheckpointResponse = self._mutate(
            "load_checkpoint", self._stub.LoadCheckpoint, request, timeout_seconds
        )
        return response.run

    def list_checkpoints(self, *, timeout_seconds: float | None = None) -> list[Checkpoint]:
        """List the checkpoints of the run, oldest first."""
        request = messages.ListCheckpointsRequest(run_id=self.run_id)
        response = self._connection.ask(self._stub.ListCheckpoints, request, timeout_seconds)
        return list(response.checkpoints)

    def export_weights(
        self,
        directory: Path,
        *,
        weights: WeightsRef | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Path]:
        """Write the weights as files: a PEFT adapter, or the whole model for a full run.

        The directory appears whole or not at all; an earlier export there is replaced.

        Returns:
            The files.

        Raises:
            FileExistsError: the directory holds files and no earlier export.
        """
        request = messages.ExportWeightsRequest(run_id=self.run_id, weights=weights)
        pieces = self._connection.ask_stream(self._stub.ExportWeights, request, timeout_seconds)
        return write_files(pieces, directory)

    def delete(
        self, *, delete_checkpoints: bool = False, timeout_seconds: float | None = None
    ) -> None:
        """Delete the run, and its checkpoints when asked; the handle is of no use afterwards."""
        request = messages.DeleteRunRequest(delete_checkpoints=delete_checkpoints)
        self._mutate("delete", self._stub.DeleteRun, request, timeout_seconds)

    def _take_over(
        self, attach_id: str, epoch: int, deadline: Deadline
    ) -> messages.CreateRunResponse:
        request = messages.CreateRunRequest(
            run_id=self.run_id,
            config=self._config,
            take_over=True,
            expected_writer_epoch=epoch,
            attach_id=attach_id,
        )
        response: messages.CreateRunResponse = self._connection.ask(
            self._stub.CreateRun, request, deadline
        )
        return response

    def _mutate(
        self,
        operation: str,
        method: Callable[..., Any],
        request: _Mutating,
        timeout_seconds: float | None,
    ) -> Any:
        """The answer of a unary RPC that changes the run, sent with its sequence number."""
        deadline = self._connection.deadline(timeout_seconds)

        def mutate(header: training_pb2.Mutation) -> Any:
            request.mutation.CopyFrom(header)
            return self._connection.ask(method, request, deadline)

        return self._sequence.apply(operation, mutate)


def _batch(settings: Batch | None, example_count: int, pull: PulledScoring | None) -> Batch:
    """A copy of the settings with what the request itself says; the caller's stay as they are."""
    batch = Batch()
    batch.CopyFrom(batch_settings() if settings is None else settings)
    batch.example_count = example_count
    batch.ClearField("pull")
    if pull is not None:
        batch.pull.CopyFrom(pull)
    return batch


def _end(chunks: Sequence[scoring_pb2.TopKChunk]) -> training_pb2.BatchEnd:
    """Says that the stream is whole: to a service, a connection that broke looks like its end."""
    return training_pb2.BatchEnd(chunk_count=len(chunks))
