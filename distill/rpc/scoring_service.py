"""Scoring, sampling and the model's description, as both services serve them."""

from collections.abc import Iterator, Sequence

import grpc

from distill.engine.process import Engine, start_engine
from distill.engine.samples import SampleJob
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import ModelWeights
from distill.limits import RequestLimits
from distill.rpc.model_info import describe_model, describe_service, request_limits
from distill.rpc.options import ServerOptions
from distill.rpc.sampling_messages import format_sample, parse_sampling
from distill.rpc.scoring import parse_scoring
from distill.rpc.streaming import stream_results
from distill.v1 import scoring_pb2
from distill.wire import rows_to_bytes


class ScoringService:
    """What a servicer does with an engine, whichever weights it computes under.

    Parsing is apart from computing, so that a servicer can check a request as a whole before it
    looks for the weights that the request names.
    """

    def __init__(self, engine: Engine, limits: RequestLimits) -> None:
        self.engine = engine
        """Computes."""
        self.limits = limits
        """What a request may ask for."""
        self._vocab_size = engine.model.config.valid_vocab_size

    @classmethod
    def start(cls, options: ServerOptions, *, max_in_flight_mutations: int = 0) -> "ScoringService":
        """Set up the process and load the model, as the options say.

        Args:
            options: what the service was told.
            max_in_flight_mutations: published; 0 of a service without mutations.

        Raises:
            ModelError: the model cannot be loaded.
        """
        engine = start_engine(
            options.model,
            dtype=options.dtype,
            cache_dir=options.cache_dir,
            mask_padded_vocabulary=options.mask_padded_vocabulary,
        )
        limits = request_limits(
            engine.model.config,
            max_sequence_tokens=options.max_sequence_tokens,
            max_top_k=options.max_top_k,
            max_held_bytes=options.max_held_bytes,
            max_in_flight_mutations=max_in_flight_mutations,
        )
        return cls(engine, limits)

    @property
    def description(self) -> str:
        """What is served, in a line of the log."""
        return describe_service(self.engine.model)

    def close(self, grace_seconds: float) -> None:
        """Finish what was accepted; give up what takes longer than this."""
        self.engine.queue.close(grace_seconds=grace_seconds)

    def describe(self, *, include_tokenizer: bool) -> scoring_pb2.ModelInfo:
        """The model and the limits."""
        return describe_model(self.engine.model, self.limits, include_tokenizer=include_tokenizer)

    def parse_scoring(self, scoring: scoring_pb2.Scoring) -> list[ScoreJob]:
        """The prompts of a request's field `scoring`.

        Raises:
            InvalidFieldError: a bad field, by name.
            LimitExceededError: a limit of the service.
        """
        return parse_scoring(
            scoring, field="scoring", limits=self.limits, vocab_size=self._vocab_size
        )

    def parse_sampling(self, sampling: scoring_pb2.Sampling) -> SampleJob:
        """The samples that a request's field `sampling` asks for. Raises as `parse_scoring`."""
        return parse_sampling(
            sampling, field="sampling", limits=self.limits, vocab_size=self._vocab_size
        )

    def score(
        self, jobs: Sequence[ScoreJob], weights: ModelWeights, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Each `TopKChunk` of the answer, as bytes for `MergeFromString`, as rows are computed."""
        for rows in stream_results(self.engine.scoring.score(jobs, weights), context):
            yield rows_to_bytes(rows)

    def sample(
        self, job: SampleJob, weights: ModelWeights, context: grpc.ServicerContext
    ) -> Iterator[scoring_pb2.SampledSequence]:
        """The samples, as they finish."""
        # The limit is never reached, so a client that reads slowly does not park the task, whose
        # cache other jobs wait for. The samples that wait for the client instead are small.
        samples = self.engine.queue.stream(
            self.engine.sampler.sample(job, weights), in_flight_limit=job.sample_count + 1
        )
        for sample in stream_results(samples, context):
            yield format_sample(sample)
