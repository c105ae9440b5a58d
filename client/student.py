"""The client of a student service."""

from collections.abc import Iterator
from functools import cached_property

from client.connection import Role
from client.formatting import encode_run_config, encode_weights
from client.parsing import decode_checkpoint, decode_model_info, decode_run
from client.results import CheckpointInfo, ModelInfo, RunInfo
from client.run import StudentRun
from client.run_model import RunModel
from client.service import ServiceClient
from client.settings import LoraSettings, Weights, WeightsChoice
from distill.v1 import scoring_pb2, student_service_pb2_grpc
from distill.v1 import student_service_pb2 as messages


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

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Describe the base model, the limits and the teachers the service can pull from."""
        response = self._ask_model_info(timeout_seconds, include_tokenizer=False)
        return decode_model_info(response.model, tuple(response.teachers))

    def under(self, run_id: str, weights: WeightsChoice = Weights.CURRENT) -> RunModel:
        """The model with a run's weights, to score with and to sample from.

        Args:
            run_id: the run.
            weights: which weights of it.
        """
        return RunModel(
            self._connection, self._stub, run_id=run_id, weights=encode_weights(weights)
        )

    def create_run(
        self,
        run_id: str,
        *,
        lora: LoraSettings | None,
        take_over: bool = False,
        timeout_seconds: float | None = None,
    ) -> StudentRun:
        """Create a run, or attach to the run of that name and configuration.

        Args:
            run_id: 1 to 64 of [A-Za-z0-9._-], no leading dot.
            lora: the adapter to train; None trains a copy of all weights.
            take_over: become the only writer of an existing run; the earlier one is refused.
            timeout_seconds: deadline of this call.

        Raises:
            ServiceError: ALREADY_EXISTS when the run has another configuration.
        """
        request = messages.CreateRunRequest(
            run_id=run_id, config=encode_run_config(lora), take_over=take_over
        )
        response = self._connection.ask(self._stub.CreateRun, request, timeout_seconds)
        return StudentRun(self._connection, self._stub, response.run)

    def get_run(self, run_id: str, *, timeout_seconds: float | None = None) -> RunInfo:
        """Describe a run."""
        request = messages.GetRunRequest(run_id=run_id)
        response = self._connection.ask(self._stub.GetRun, request, timeout_seconds)
        return decode_run(response.run)

    def list_runs(self, *, timeout_seconds: float | None = None) -> list[RunInfo]:
        """List the runs by name."""
        request = messages.ListRunsRequest()
        response = self._connection.ask(self._stub.ListRuns, request, timeout_seconds)
        return [decode_run(run) for run in response.runs]

    def list_checkpoints(
        self, run_id: str, *, timeout_seconds: float | None = None
    ) -> list[CheckpointInfo]:
        """List the checkpoints of a run, oldest first."""
        request = messages.ListCheckpointsRequest(run_id=run_id)
        response = self._connection.ask(self._stub.ListCheckpoints, request, timeout_seconds)
        return [decode_checkpoint(checkpoint) for checkpoint in response.checkpoints]

    def _ask_model_info(
        self, timeout_seconds: float | None, *, include_tokenizer: bool
    ) -> messages.StudentServiceGetModelInfoResponse:
        request = messages.StudentServiceGetModelInfoRequest(include_tokenizer=include_tokenizer)
        response: messages.StudentServiceGetModelInfoResponse = self._connection.ask(
            self._stub.GetModelInfo, request, timeout_seconds
        )
        return response

    def _describe(
        self, timeout_seconds: float | None, *, include_tokenizer: bool = False
    ) -> scoring_pb2.ModelInfo:
        return self._ask_model_info(timeout_seconds, include_tokenizer=include_tokenizer).model

    def _stream_chunks(
        self, scoring: scoring_pb2.Scoring, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.TopKChunk]:
        return self._base._stream_chunks(scoring, timeout_seconds)

    def _stream_sequences(
        self, sampling: scoring_pb2.Sampling, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.SampledSequence]:
        return self._base._stream_sequences(sampling, timeout_seconds)
