"""A run on a student service, as its one writer sees it."""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from client.batch_parts import BatchParts, Chunks
from client.connection import Connection
from client.download import write_files
from client.mutation_call import MutationCall
from client.mutations import Mutations
from client.parsing import parse_batch_result
from client.results import (
    BatchResult,
    Checkpoint,
    DiscardGradientResponse,
    ModelInfo,
    OptimStepResponse,
    Run,
)
from client.settings import AdamW, Batch, Example, PulledScoring, WeightsRef
from distill.enum_names import enum_value
from distill.v1 import student_service_pb2 as messages
from distill.v1 import student_service_pb2_grpc, training_pb2

_Mutating = (
    messages.OptimStepRequest
    | messages.DiscardGradientRequest
    | messages.SaveCheckpointRequest
    | messages.LoadCheckpointRequest
    | messages.DeleteRunRequest
)


class StudentRun:
    """A handle of a run; it owns the run's writer epoch and sequence numbers.

    Safe to use from many threads. Calls that change the run are applied in the order in which they
    were made, also where the next is sent before the one before it is answered, as the `submit_`
    forms do.

    A refused call changes nothing, and the next may follow. Calls made after it, but before its
    future was read, raise PredecessorFailedError, because they may count on it; nothing of them
    was applied.

    A call that ends without an answer (its deadline passed, the service stayed away, Ctrl-C) may
    have been applied, and so may those behind it: the next one raises UncertainMutationError until
    `resynchronize` has settled it. So does a conflict after a retry: what is in the way may be the
    first attempt. Where ServiceError.code is ABORTED with the reason WRITER_FENCED, another writer
    has the run, and this handle will change it no more.
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
        self._connection = connection
        self._stub = stub
        self._mutations = Mutations(connection, stub, created, writer_epoch)

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

    def resynchronize(self, *, timeout_seconds: float | None = None) -> int:
        """After calls without an answer: how many of them were applied; the others never will be.

        They are applied in their order, so it was the first ones. After a single call it is 1 or 0.

        Waits for what the service still has under way, and takes the run over from this handle
        itself, so that a copy of a request on its way is refused when it arrives. Where this fails
        itself it can be repeated: it takes the run from no other writer.

        Raises:
            ServiceError: ABORTED (WRITER_FENCED) when another writer has taken the run over;
                NOT_FOUND when the run is gone.
        """
        return self._mutations.resynchronize(self._connection.deadline(timeout_seconds))

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
            ServiceError: the service refused, so nothing changed; or no answer came.
        """
        return self._mutations.wait(
            self._forward_backward(examples, settings, pull, chunks, timeout_seconds)
        )

    def submit_forward_backward(
        self,
        examples: Sequence[Example],
        settings: Batch | None = None,
        *,
        pull: PulledScoring | None = None,
        chunks: Chunks = (),
        timeout_seconds: float | None = None,
    ) -> Future[BatchResult]:
        """`forward_backward` that does not wait for its answer.

        It has its place in the sequence when this returns, so that an `optim_step` may follow at
        once. Waits while too many calls are in flight, and for the chunks. The future cannot be
        cancelled; it raises what `forward_backward` would, and PredecessorFailedError.
        """
        return self._mutations.submit(
            self._forward_backward(examples, settings, pull, chunks, timeout_seconds)
        )

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
        parts = BatchParts(messages.ForwardRequest, examples, settings, pull, chunks)
        header = messages.ForwardHeader(run_id=self.run_id, batch=parts.batch, weights=weights)
        response = self._connection.call(
            lambda timeout: self._stub.Forward(parts.stream(header), timeout=timeout),
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
        return self._mutations.wait(self._optim_step(adamw, normalization, timeout_seconds))

    def submit_optim_step(
        self,
        adamw: AdamW,
        *,
        normalization: str = "rows",
        timeout_seconds: float | None = None,
    ) -> Future[OptimStepResponse]:
        """`optim_step` that does not wait for its answer, as `submit_forward_backward`."""
        return self._mutations.submit(self._optim_step(adamw, normalization, timeout_seconds))

    def discard_gradient(self, *, timeout_seconds: float | None = None) -> DiscardGradientResponse:
        """Drop the gradient sum; without one, nothing happens.

        For whoever goes on with a run in which another script may have left a gradient: the next
        `optim_step` would apply it with its own.
        """
        request = messages.DiscardGradientRequest()
        method = self._stub.DiscardGradient
        answer: DiscardGradientResponse = self._mutations.wait(
            self._unary("discard_gradient", method, request, timeout_seconds)
        )
        return answer

    def save_checkpoint(
        self, name: str, *, overwrite: bool = False, timeout_seconds: float | None = None
    ) -> Checkpoint:
        """Save the whole state of the run; it appears whole or not at all."""
        request = messages.SaveCheckpointRequest(name=name, overwrite=overwrite)
        method = self._stub.SaveCheckpoint
        answer: messages.SaveCheckpointResponse = self._mutations.wait(
            self._unary("save_checkpoint", method, request, timeout_seconds)
        )
        return answer.checkpoint

    def load_checkpoint(self, name: str, *, timeout_seconds: float | None = None) -> Run:
        """Replace the state of the run by a checkpoint's; the run's sequence goes on."""
        request = messages.LoadCheckpointRequest(name=name)
        method = self._stub.LoadCheckpoint
        answer: messages.LoadCheckpointResponse = self._mutations.wait(
            self._unary("load_checkpoint", method, request, timeout_seconds)
        )
        return answer.run

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
        self._mutations.wait(self._unary("delete", self._stub.DeleteRun, request, timeout_seconds))

    def _forward_backward(
        self,
        examples: Sequence[Example],
        settings: Batch | None,
        pull: PulledScoring | None,
        chunks: Chunks,
        timeout_seconds: float | None,
    ) -> MutationCall[BatchResult]:
        parts = BatchParts(messages.ForwardBackwardRequest, examples, settings, pull, chunks)

        def start(mutation: training_pb2.Mutation, timeout: float) -> Any:
            header = messages.ForwardBackwardHeader(mutation=mutation, batch=parts.batch)
            return self._stub.ForwardBackward.future(parts.stream(header), timeout=timeout)

        return MutationCall(
            "forward_backward",
            self._connection.deadline(timeout_seconds),
            start,
            lambda answer: parse_batch_result(answer.result, replayed=answer.replayed),
        )

    def _optim_step(
        self, adamw: AdamW, normalization: str, timeout_seconds: float | None
    ) -> MutationCall[OptimStepResponse]:
        request = messages.OptimStepRequest(
            adamw=adamw,
            normalization=enum_value(
                training_pb2.GradientNormalization, normalization, "normalization"
            ),
        )
        return self._unary("optim_step", self._stub.OptimStep, request, timeout_seconds)

    def _unary(
        self, operation: str, method: Any, request: _Mutating, timeout_seconds: float | None
    ) -> MutationCall[Any]:
        """The call of a unary RPC that changes the run."""

        def start(mutation: training_pb2.Mutation, timeout: float) -> Any:
            request.mutation.CopyFrom(mutation)
            return method.future(request, timeout=timeout)

        return MutationCall(
            operation, self._connection.deadline(timeout_seconds), start, lambda answer: answer
        )
