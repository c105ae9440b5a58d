"""The client of a teacher service."""

from collections.abc import Iterator
from functools import cached_property

from client.connection import Role
from client.service import ServiceClient
from distill.v1 import scoring_pb2, teacher_service_pb2, teacher_service_pb2_grpc


class TeacherClient(ServiceClient):
    """Scores prompts and samples under a teacher's model."""

    role = Role.TEACHER

    @cached_property
    def _stub(self) -> teacher_service_pb2_grpc.TeacherServiceStub:
        return teacher_service_pb2_grpc.TeacherServiceStub(self._connection.channel)

    def _describe(
        self, timeout_seconds: float | None, *, include_tokenizer: bool
    ) -> scoring_pb2.ModelInfo:
        request = teacher_service_pb2.TeacherServiceGetModelInfoRequest(
            include_tokenizer=include_tokenizer
        )
        response: teacher_service_pb2.TeacherServiceGetModelInfoResponse = self._connection.ask(
            self._stub.GetModelInfo, request, timeout_seconds
        )
        return response.model

    def _stream_chunks(
        self, scoring: scoring_pb2.Scoring, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.TopKChunk]:
        request = teacher_service_pb2.TeacherServiceStreamTopKRequest(scoring=scoring)
        responses = self._connection.ask_stream(self._stub.StreamTopK, request, timeout_seconds)
        return (response.chunk for response in responses)

    def _stream_sequences(
        self, sampling: scoring_pb2.Sampling, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.SampledSequence]:
        request = teacher_service_pb2.TeacherServiceSampleRequest(sampling=sampling)
        responses = self._connection.ask_stream(self._stub.Sample, request, timeout_seconds)
        return (response.sequence for response in responses)
