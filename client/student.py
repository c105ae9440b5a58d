"""The client of a student service."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from client.connection import DEFAULT_RETRY, Connection, RetryPolicy, Role
from client.formatting import encode_run_config, encode_sampling, encode_scoring, encode_weights
from client.parsing import (
    decode_checkpoint,
    decode_completion,
    decode_model_info,
    decode_run,
    parse_rows,
)
from client.results import CheckpointInfo, Completion, ModelInfo, RunInfo
from client.run import StudentRun
from client.scores import scored_prompts
from client.settings import (
    LoraSettings,
    SampledSupport,
    SamplingSettings,
    ScoredPrompt,
    Tokens,
    Weights,
    WeightsChoice,
)
from client.teacher import decode_tokenizer
from distill.rows import Rows
from distill.tokenizer import TextTokenizer
from distill.v1 import student_service_pb2 as messages
from distill.v1 import student_service_pb2_grpc


class StudentClient:
    """Creates and lists runs, and samples and scores under the base model.

    A context manager; safe to use from many threads. Every call has a deadline, of
    `timeout_seconds` unless the call is given its own, and raises `client.errors.ServiceError` on
    any status other than OK. UNAVAILABLE is retried until the deadline, a few times; that is safe
    for what changes a run as well, since a repeated sequence number is applied once.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 300.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """Open a channel to a student; it connects on the first call.

        Args:
            address: HOST:PORT.
            timeout_seconds: default deadline of a call.
            retry: how UNAVAILABLE is retried.

        Raises:
            ValueError: the address is not HOST:PORT, nor one of gRPC's own targets.
        """
        self._connection = Connection(
            address, Role.STUDENT, timeout_seconds=timeout_seconds, retry=retry
        )
        self._stub = student_service_pb2_grpc.StudentServiceStub(self._connection.channel)
        self._tokenizer: TextTokenizer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in progress fail."""
        self._connection.close()

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Describe the base model, the limits and the teachers the service can pull from."""
        request = messages.StudentServiceGetModelInfoRequest()
        response = self._connection.call(
            lambda timeout: self._stub.GetModelInfo(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return decode_model_info(response.model, tuple(response.teachers))

    def tokenizer(self, *, timeout_seconds: float | None = None) -> TextTokenizer:
        """The service's tokenizer, asked for once: the client needs no model files."""
        if self._tokenizer is None:
            request = messages.StudentServiceGetModelInfoRequest(include_tokenizer=True)
            response = self._connection.call(
                lambda timeout: self._stub.GetModelInfo(request, timeout=timeout),
                self._connection.deadline(timeout_seconds),
            )
            self._tokenizer = decode_tokenizer(response.model.tokenizer)
        return self._tokenizer

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
        response = self._connection.call(
            lambda timeout: self._stub.CreateRun(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return StudentRun(self._connection, self._stub, response.run)

    def get_run(self, run_id: str, *, timeout_seconds: float | None = None) -> RunInfo:
        """Describe a run."""
        request = messages.GetRunRequest(run_id=run_id)
        response = self._connection.call(
            lambda timeout: self._stub.GetRun(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return decode_run(response.run)

    def list_runs(self, *, timeout_seconds: float | None = None) -> list[RunInfo]:
        """List the runs by name."""
        request = messages.ListRunsRequest()
        response = self._connection.call(
            lambda timeout: self._stub.ListRuns(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return [decode_run(run) for run in response.runs]

    def list_checkpoints(
        self, run_id: str, *, timeout_seconds: float | None = None
    ) -> list[CheckpointInfo]:
        """List the checkpoints of a run, oldest first."""
        request = messages.ListCheckpointsRequest(run_id=run_id)
        response = self._connection.call(
            lambda timeout: self._stub.ListCheckpoints(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return [decode_checkpoint(checkpoint) for checkpoint in response.checkpoints]

    def sample(
        self,
        prompts: Sequence[Tokens],
        settings: SamplingSettings,
        *,
        run_id: str = "",
        weights: WeightsChoice = Weights.CURRENT,
        timeout_seconds: float | None = None,
    ) -> list[Completion]:
        """Sample completions, ordered by prompt and sample.

        Args:
            prompts: token ids, [T] each.
            settings: how to sample.
            run_id: a run; empty samples from the base model.
            weights: which weights of the run.
            timeout_seconds: deadline of the whole stream.
        """
        request = messages.StudentServiceSampleRequest(
            run_id=run_id,
            weights=encode_weights(weights) if run_id else None,
            sampling=encode_sampling(prompts, settings),
        )
        responses = self._connection.stream(
            lambda timeout: self._stub.Sample(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        completions = [decode_completion(response.sequence) for response in responses]
        return sorted(completions, key=lambda sample: (sample.prompt_index, sample.sample_index))

    def stream_top_k(
        self,
        prompts: Sequence[Tokens | ScoredPrompt],
        top_k: int | None = None,
        *,
        run_id: str = "",
        weights: WeightsChoice = Weights.CURRENT,
        temperature: float | None = None,
        score_from: int | Sequence[int] | None = None,
        sampled: SampledSupport | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[Rows]:
        """The teacher's `stream_top_k` under a run's weights, or the base model's.

        Args:
            prompts: token ids, [T] each, or ScoredPrompt.
            top_k: K. None: the prompts name their candidates.
            run_id: a run; empty scores under the base model.
            weights: which weights of the run.
            temperature: divides the logits. None: 1.
            score_from: first row wanted, for all prompts or for each. None: row 1.
            sampled: draw the support. None: the K most probable tokens, or the candidates.
            timeout_seconds: deadline of the whole stream.
        """
        request = messages.StudentServiceStreamTopKRequest(
            run_id=run_id,
            weights=encode_weights(weights) if run_id else None,
            scoring=encode_scoring(
                scored_prompts(prompts, score_from), top_k, temperature, sampled
            ),
        )
        responses = self._connection.stream(
            lambda timeout: self._stub.StreamTopK(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return (parse_rows(response.chunk) for response in responses)
