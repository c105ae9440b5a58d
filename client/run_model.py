"""A student's model under the weights of a run."""

from collections.abc import Iterator

from client.connection import Connection
from client.model import Model
from distill.v1 import (
    scoring_pb2,
    student_service_pb2,
    student_service_pb2_grpc,
    training_pb2,
)


class RunModel(Model):
    """Scores and samples under weights of a run; `StudentClient.under` makes it."""

    def __init__(
        self,
        connection: Connection,
        stub: student_service_pb2_grpc.StudentServiceStub,
        *,
        run_id: str = "",
        weights: training_pb2.WeightsRef | None = None,
    ) -> None:
        """Name the weights; asks nothing yet.

        Args:
            connection: to the student.
            stub: of the student's service.
            run_id: the run; empty: the base model.
            weights: which weights of the run. None: its current ones.
        """
        self._connection = connection
        self._stub = stub
        self._run_id = run_id
        self._weights = weights

    def _stream_chunks(
        self, scoring: scoring_pb2.Scoring, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.TopKChunk]:
        request = student_service_pb2.StudentServiceStreamTopKRequest(
            run_id=self._run_id, weights=self._weights, scoring=scoring
        )
        responses = self._connection.ask_stream(self._stub.StreamTopK, request, timeout_seconds)
        return (response.chunk for response in responses)

    def _stream_sequences(
        self, sampling: scoring_pb2.Sampling, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.SampledSequence]:
        request = student_service_pb2.StudentServiceSampleRequest(
            run_id=self._run_id, weights=self._weights, sampling=sampling
        )
        responses = self._connection.ask_stream(self._stub.Sample, request, timeout_seconds)
        return (response.sequence for response in responses)
