"""Scoring, sampling and the model's description, as both services serve them."""

from collections.abc import Iterator, Sequence

import grpc

from distill.engine.process import Engine
from distill.engine.samples import SampleJob
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import ModelWeights
from distill.limits import RequestLimits
from distill.rpc.model_info import describe_model
from distill.rpc.sampling_messages import format_sample, parse_sampling
from distill.rpc.scoring import chunk_bytes, parse_scoring
from distill.rpc.streaming import stream_results
from distill.v1 import scoring_pb2


class ScoringService:
    """What a servicer does with an engine, whichever weights it computes under.

    Parsing is apart from computing: a request is checked as a whole before a servicer looks for
    the weights that it names.
    """

    def __init__(self, engine: Engine, limits: RequestLimits) -> None:
        self._engine = engine
        self._limits = limits
        self._vocab_size = engine.model.config.valid_vocab_size

    def describe(self, *, include_tokenizer: bool) -> scoring_pb2.ModelInfo:
        """The model and the limits."""
        return describe_model(self._engine.model, self._limits, include_tokenizer=include_tokenizer)

    def parse_scoring(self, scoring: scoring_pb2.Scoring) -> list[ScoreJob]:
        """The prompts of a request's field `scoring`.

        Raises:
            InvalidFieldError: a bad field, by name.
            LimitExceededError: a limit of the service.
        """
        return parse_scoring(
            scoring, field="scoring", limits=self._limits, vocab_size=self._vocab_size
        )

    def parse_sampling(self, sampling: scoring_pb2.Sampling) -> SampleJob:
        """The samples that a request's field `sampling` asks for. Raises as `parse_scoring`."""
        return parse_sampling(
            sampling, field="sampling", limits=self._limits, vocab_size=self._vocab_size
        )

    def score(
        self, jobs: Sequence[ScoreJob], weights: ModelWeights, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Each `TopKChunk` of the answer, as bytes for `MergeFromString`, as rows are computed."""
        for chunk in stream_results(self._engine.scoring.score(jobs, weights), context):
            yield chunk_bytes(chunk)

    def sample(
        self, job: SampleJob, weights: ModelWeights, context: grpc.ServicerContext
    ) -> Iterator[scoring_pb2.SampledSequence]:
        """The samples, as they finish."""
        # All of them may wait, and the task is not parked for it: a client that reads slowly must
        # not hold the cache that other jobs wait for, and samples are small.
        samples = self._engine.queue.stream(
            self._engine.sampler.sample(job, weights), in_flight_limit=job.sample_count + 1
        )
        for sample in stream_results(samples, context):
            yield format_sample(sample)
