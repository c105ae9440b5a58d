"""The teacher's RPCs: decode, call, encode."""

from collections.abc import Iterator

import grpc

from distill.engine.device_queue import DeviceQueue
from distill.engine.sampler import Sampler
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.engine.weights import base_weights
from distill.limits import RequestLimits
from distill.models.loading import LoadedModel
from distill.rpc.model_info import describe_model
from distill.rpc.sampling import encode_sample, parse_sampling
from distill.rpc.scoring import chunk_bytes, parse_scoring
from distill.rpc.streaming import stream_results
from distill.v1 import teacher_service_pb2 as pb
from distill.v1 import teacher_service_pb2_grpc


class TeacherServicer(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Scores and samples under the fixed weights of one model."""

    def __init__(
        self,
        *,
        model: LoadedModel,
        limits: RequestLimits,
        queue: DeviceQueue,
        scoring: ScoringScheduler,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._limits = limits
        self._queue = queue
        self._scoring = scoring
        self._sampler = sampler
        self._weights = base_weights(model)

    def GetModelInfo(
        self,
        request: pb.TeacherServiceGetModelInfoRequest,
        context: grpc.ServicerContext,
    ) -> pb.TeacherServiceGetModelInfoResponse:
        """Describe the model and the limits."""
        description = describe_model(
            self._model, self._limits, include_tokenizer=request.include_tokenizer
        )
        return pb.TeacherServiceGetModelInfoResponse(model=description)

    def StreamTopK(
        self,
        request: pb.TeacherServiceStreamTopKRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.TeacherServiceStreamTopKResponse]:
        """Stream the distributions of the requested rows."""
        jobs = parse_scoring(
            request.scoring,
            field="scoring",
            limits=self._limits,
            vocab_size=self._model.config.valid_vocab_size,
        )
        for chunk in stream_results(self._scoring.score(jobs, self._weights), context):
            response = pb.TeacherServiceStreamTopKResponse()
            response.chunk.MergeFromString(chunk_bytes(chunk))
            yield response

    def Sample(
        self,
        request: pb.TeacherServiceSampleRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.TeacherServiceSampleResponse]:
        """Stream samples as they finish."""
        job = parse_sampling(
            request.sampling,
            field="sampling",
            limits=self._limits,
            vocab_size=self._model.config.valid_vocab_size,
        )
        # All of them may wait, and the task is not parked for it: a client that reads slowly must
        # not hold the cache that other jobs wait for, and samples are small.
        samples = self._queue.stream(
            self._sampler.sample(job, self._weights), window=job.sample_count + 1
        )
        for sample in stream_results(samples, context):
            yield pb.TeacherServiceSampleResponse(sequence=encode_sample(sample))
