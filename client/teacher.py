"""The client of a teacher service."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from client.connection import DEFAULT_RETRY, Connection, RetryPolicy, Role
from client.formatting import encode_sampling, encode_scoring
from client.parsing import decode_completion, decode_model_info, parse_rows
from client.results import Completion, ModelInfo
from client.scores import assemble_scores, scored_prompts
from client.settings import SampledSupport, SamplingSettings, ScoredPrompt, Tokens
from distill.rows import Rows
from distill.tokenizer import TextTokenizer
from distill.v1 import scoring_pb2, teacher_service_pb2, teacher_service_pb2_grpc


class TeacherClient:
    """Scores prompts and samples under a teacher's model.

    A context manager; safe to use from many threads. Every call has a deadline, of
    `timeout_seconds` unless the call is given its own, and raises `client.errors.ServiceError` on
    any status other than OK. UNAVAILABLE is retried until the deadline, a few times.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 300.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """Open a channel to a teacher; it connects on the first call.

        Args:
            address: HOST:PORT.
            timeout_seconds: default deadline of a call.
            retry: how UNAVAILABLE is retried.

        Raises:
            ValueError: the address is not HOST:PORT, nor one of gRPC's own targets.
        """
        self._connection = Connection(
            address, Role.TEACHER, timeout_seconds=timeout_seconds, retry=retry
        )
        self._stub = teacher_service_pb2_grpc.TeacherServiceStub(self._connection.channel)
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
        """Describe the model and the limits of the service."""
        request = teacher_service_pb2.TeacherServiceGetModelInfoRequest()
        response = self._connection.call(
            lambda timeout: self._stub.GetModelInfo(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return decode_model_info(response.model)

    def tokenizer(self, *, timeout_seconds: float | None = None) -> TextTokenizer:
        """The service's tokenizer, asked for once: the client needs no model files."""
        if self._tokenizer is None:
            request = teacher_service_pb2.TeacherServiceGetModelInfoRequest(include_tokenizer=True)
            response = self._connection.call(
                lambda timeout: self._stub.GetModelInfo(request, timeout=timeout),
                self._connection.deadline(timeout_seconds),
            )
            self._tokenizer = decode_tokenizer(response.model.tokenizer)
        return self._tokenizer

    def stream_top_k(
        self,
        prompts: Sequence[Tokens | ScoredPrompt],
        top_k: int | None = None,
        *,
        temperature: float | None = None,
        score_from: int | Sequence[int] | None = None,
        sampled: SampledSupport | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[Rows]:
        """Stream the distributions of the requested rows on their support as they finish.

        Closing the iterator early stops the work on the service.

        Args:
            prompts: token ids, [T] each, or ScoredPrompt.
            top_k: K. None: the prompts name their candidates.
            temperature: divides the logits. None: 1.
            score_from: first row wanted, for all prompts or for each. None: row 1.
            sampled: draw the support. None: the K most probable tokens, or the candidates.
            timeout_seconds: deadline of the whole stream.

        Yields:
            Chunks of P rows: the arrays are [P, K] and [P].
        """
        messages = self.stream_top_k_messages(
            prompts,
            top_k,
            temperature=temperature,
            score_from=score_from,
            sampled=sampled,
            timeout_seconds=timeout_seconds,
        )
        return (parse_rows(message) for message in messages)

    def stream_top_k_messages(
        self,
        prompts: Sequence[Tokens | ScoredPrompt],
        top_k: int | None = None,
        *,
        temperature: float | None = None,
        score_from: int | Sequence[int] | None = None,
        sampled: SampledSupport | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[scoring_pb2.TopKChunk]:
        """The chunks of `stream_top_k` as they came, to relay to a student unread."""
        scoring = encode_scoring(scored_prompts(prompts, score_from), top_k, temperature, sampled)
        return self._stream_scoring(scoring, timeout_seconds)

    def score(
        self,
        prompts: Sequence[Tokens | ScoredPrompt],
        top_k: int | None = None,
        *,
        temperature: float | None = None,
        score_from: int | Sequence[int] | None = None,
        sampled: SampledSupport | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Rows]:
        """Score prompts and put the rows of each together, in the order of the prompts.

        Args are those of `stream_top_k`.

        Raises:
            BrokenStreamError: the chunks did not tile the requested rows exactly once.
        """
        scored = scored_prompts(prompts, score_from)
        scoring = encode_scoring(scored, top_k, temperature, sampled)
        messages = self._stream_scoring(scoring, timeout_seconds)
        return assemble_scores(scored, (parse_rows(message) for message in messages))

    def sample(
        self,
        prompts: Sequence[Tokens],
        settings: SamplingSettings,
        *,
        timeout_seconds: float | None = None,
    ) -> list[Completion]:
        """Sample completions, ordered by prompt and sample."""
        streamed = self.stream_samples(prompts, settings, timeout_seconds=timeout_seconds)
        return sorted(streamed, key=lambda sample: (sample.prompt_index, sample.sample_index))

    def stream_samples(
        self,
        prompts: Sequence[Tokens],
        settings: SamplingSettings,
        *,
        timeout_seconds: float | None = None,
    ) -> Iterator[Completion]:
        """Stream completions as they finish."""
        request = teacher_service_pb2.TeacherServiceSampleRequest(
            sampling=encode_sampling(prompts, settings)
        )
        responses = self._connection.stream(
            lambda timeout: self._stub.Sample(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return (decode_completion(response.sequence) for response in responses)

    def _stream_scoring(
        self, scoring: scoring_pb2.Scoring, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.TopKChunk]:
        request = teacher_service_pb2.TeacherServiceStreamTopKRequest(scoring=scoring)
        responses = self._connection.stream(
            lambda timeout: self._stub.StreamTopK(request, timeout=timeout),
            self._connection.deadline(timeout_seconds),
        )
        return (response.chunk for response in responses)


def decode_tokenizer(message: scoring_pb2.Tokenizer) -> TextTokenizer:
    """Build the tokenizer that a service sent."""
    return TextTokenizer(
        tokenizer_json=message.tokenizer_json,
        chat_template=message.chat_template,
        bos_token=message.bos_token,
        eos_token=message.eos_token,
        end_token_ids=tuple(message.end_token_ids),
    )
