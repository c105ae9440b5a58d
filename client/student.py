"""The client of a student service."""

import uuid
from collections.abc import Iterator
from functools import cached_property

from client.connection import Role
from client.results import Checkpoint, ModelInfo, Run
from client.run import StudentRun
from client.run_model import RunModel
from client.service import ServiceClient
from client.settings import LoraConfig, WeightsRef
from distill.v1 import scoring_pb2, student_service_pb2_grpc
from distill.v1 import student_service_pb2 as messages
from distill.v1.training_pb2 import FullConfig, RunConfig


class StudentClient(ServiceClient):
    """Creates and lists runs; scores and samples under the base model, and `under` a run's weights.

    Calls that change a run may be retried as well: a repeated sequence number is applied once.
    """

    role = Role.STUDENT

    @cached_property
    def _stub(self) -> student_service_pb2_grpc.StudentServiceStub:
        return student_service_pb2_grpc.StudentServiceStub(self._connection.channel)

    @property
    def _base(self) -> RunModel:
        return RunModel(self._connection, self._stub)

    def teacher_names(self, *, timeout_seconds: float | None = None) -> list[str]:
        """Names of the teachers that the service can pull from."""
        return list(self._ask_model_info(timeout_seconds, include_tokenizer=False).teachers)

    def under(self, run_id: str, weights: WeightsRef | None = None) -> RunModel:
        """The model with a run's weights, to score with and to sample from.

        Args:
            run_id: the run.
            weights: which weights of it. None: the current ones.
        """
        return RunModel(self._connection, self._stub, run_id=run_id, weights=weights)

    def create_run(
        self,
        run_id: str,
        *,
        lora: LoraConfig | None,
        take_over: bool = False,
        expected_writer_epoch: int | None = None,
        timeout_seconds: float | None = None,
    ) -> StudentRun:
        """Create a run, or attach to the run of that name and configuration.

        A run has one writer. Without `take_over`, the handle of a run that was there already can
        read it alone: what would change it raises AnotherWriterError.

        Args:
            run_id: 1 to 64 of [A-Za-z0-9._-], no leading dot.
            lora: the adapter to train; None trains a copy of all weights.
            take_over: become the only writer of an existing run; the earlier one is refused.
            expected_writer_epoch: only with `take_over`: take the run over from this epoch's writer
                alone.
            timeout_seconds: deadline of this call.

        Raises:
            ServiceError: ALREADY_EXISTS when the run has another configuration; ABORTED
                (WRITER_FENCED) when another epoch than the expected one is current.
        """
        config = RunConfig(full=FullConfig()) if lora is None else RunConfig(lora=lora)
        request = messages.CreateRunRequest(
            run_id=run_id,
            config=config,
            take_over=take_over,
            expected_writer_epoch=expected_writer_epoch,
            # One for all attempts of this call, so that a retry raises the epoch no further.
            attach_id=uuid.uuid4().hex,
        )
        response = self._connection.ask(self._stub.CreateRun, request, timeout_seconds)
        return StudentRun(self._connection, self._stub, response.run, response.writer_epoch)

    def get_run(self, run_id: str, *, timeout_seconds: float | None = None) -> Run:
        """Describe a run."""
        request = messages.GetRunRequest(run_id=run_id)
        response: messages.GetRunResponse = self._connection.ask(
            self._stub.GetRun, request, timeout_seconds
        )
        return response.run

    def list_runs(self, *, timeout_seconds: float | None = None) -> list[Run]:
        """List the runs by name."""
        request = messages.ListRunsRequest()
        response = self._connection.ask(self._stub.ListRuns, request, timeout_seconds)
        return list(response.runs)

    def list_checkpoints(
        self, run_id: str, *, timeout_seconds: float | None = None
    ) -> list[Checkpoint]:
        """List the checkpoints of a run, oldest first."""
        request = messages.ListCheckpointsRequest(run_id=run_id)
        response = self._connection.ask(self._stub.ListCheckpoints, request, timeout_seconds)
        return list(response.checkpoints)

    def _ask_model_info(
        self, timeout_seconds: float | None, *, include_tokenizer: bool
    ) -> messages.StudentServiceGetModelInfoResponse:
        request = messages.StudentServiceGetModelInfoRequest(include_tokenizer=include_tokenizer)
        response: messages.StudentServiceGetModelInfoResponse = self._connection.ask(
            self._stub.GetModelInfo, request, timeout_seconds
        )
        return response

    def _describe(self, timeout_seconds: float | None, *, include_tokenizer: bool) -> ModelInfo:
        return self._ask_model_info(timeout_seconds, include_tokenizer=include_tokenizer).model

    def _stream_chunks(
        self, scoring: scoring_pb2.Scoring, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.TopKChunk]:
        return self._base._stream_chunks(scoring, timeout_seconds)

    def _stream_sequences(
        self, sampling: scoring_pb2.Sampling, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.SampledSequence]:
        return self._base._stream_sequences(sampling, timeout_seconds)
