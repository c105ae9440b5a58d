"""The teacher's RPCs: parse, call, format."""

from collections.abc import Iterator

import grpc

from distill.engine.weights import base_weights
from distill.rpc.scoring_service import ScoringService
from distill.v1 import teacher_service_pb2 as pb
from distill.v1 import teacher_service_pb2_grpc


class TeacherServicer(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Scores and samples under the fixed weights of one model."""

    def __init__(self, scoring: ScoringService) -> None:
        self._scoring = scoring
        self._weights = base_weights(scoring.engine.model)

    def GetModelInfo(
        self,
        request: pb.TeacherServiceGetModelInfoRequest,
        context: grpc.ServicerContext,
    ) -> pb.TeacherServiceGetModelInfoResponse:
        """Describe the model and the limits."""
        description = self._scoring.describe(include_tokenizer=request.include_tokenizer)
        return pb.TeacherServiceGetModelInfoResponse(model=description)

    def StreamTopK(
        self,
        request: pb.TeacherServiceStreamTopKRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.TeacherServiceStreamTopKResponse]:
        """Stream the distributions of the requested rows."""
        jobs = self._scoring.parse_scoring(request.scoring)
        for chunk in self._scoring.score(jobs, self._weights, context):
            response = pb.TeacherServiceStreamTopKResponse()
            response.chunk.MergeFromString(chunk)
            yield response

    def Sample(
        self,
        request: pb.TeacherServiceSampleRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.TeacherServiceSampleResponse]:
        """Stream samples as they finish."""
        job = self._scoring.parse_sampling(request.sampling)
        for sequence in self._scoring.sample(job, self._weights, context):
            yield pb.TeacherServiceSampleResponse(sequence=sequence)
