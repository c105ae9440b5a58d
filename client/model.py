"""What scores and samples: a teacher, a student's base model, the weights of a run."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from client.formatting import Tokens, format_tokens
from client.parsing import parse_completion, parse_rows
from client.results import Sample
from client.scores import assemble_scores
from client.settings import SampledSupport, SamplingParams, ScoredPrompt, scoring
from distill.rows import ScoredRows
from distill.v1 import scoring_pb2


class Model(ABC):
    """Scores prompts and samples completions.

    Every call has a deadline: the client's, unless the call is given its own. It raises
    `client.errors.ServiceError` on any status other than OK, and ValueError before anything is sent
    for what cannot be sent.
    """

    def stream_top_k(
        self,
        prompts: Sequence[Tokens | ScoredPrompt],
        top_k: int | None = None,
        *,
        temperature: float | None = None,
        score_from: int | Sequence[int] | None = None,
        sampled: SampledSupport | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[ScoredRows]:
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
        asked = scoring(
            prompts, top_k, temperature=temperature, score_from=score_from, sampled=sampled
        )
        return self._stream_chunks(asked, timeout_seconds)

    def score(
        self,
        prompts: Sequence[Tokens | ScoredPrompt],
        top_k: int | None = None,
        *,
        temperature: float | None = None,
        score_from: int | Sequence[int] | None = None,
        sampled: SampledSupport | None = None,
        timeout_seconds: float | None = None,
    ) -> list[ScoredRows]:
        """Score prompts and put the rows of each together, in the order of the prompts.

        Args are those of `stream_top_k`.

        Raises:
            BrokenStreamError: the chunks did not tile the requested rows exactly once.
        """
        asked = scoring(
            prompts, top_k, temperature=temperature, score_from=score_from, sampled=sampled
        )
        messages = self._stream_chunks(asked, timeout_seconds)
        return assemble_scores(asked.prompts, (parse_rows(message) for message in messages))

    def sample(
        self,
        prompts: Sequence[Tokens],
        params: SamplingParams,
        *,
        timeout_seconds: float | None = None,
    ) -> list[Sample]:
        """Sample completions, ordered by prompt and sample. Args are those of `stream_samples`."""
        streamed = self.stream_samples(prompts, params, timeout_seconds=timeout_seconds)
        return sorted(streamed, key=lambda sample: (sample.prompt_index, sample.sample_index))

    def stream_samples(
        self,
        prompts: Sequence[Tokens],
        params: SamplingParams,
        *,
        timeout_seconds: float | None = None,
    ) -> Iterator[Sample]:
        """Stream completions as they finish.

        Args:
            prompts: token ids, [T] each.
            params: how to sample, for all prompts.
            timeout_seconds: deadline of the whole stream.
        """
        sampling = scoring_pb2.Sampling(
            prompts=[
                format_tokens(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)
            ],
            params=params,
        )
        messages = self._stream_sequences(sampling, timeout_seconds)
        return (parse_completion(message) for message in messages)

    @abstractmethod
    def _stream_chunks(
        self, scoring: scoring_pb2.Scoring, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.TopKChunk]:
        """Ask the service to score."""

    @abstractmethod
    def _stream_sequences(
        self, sampling: scoring_pb2.Sampling, timeout_seconds: float | None
    ) -> Iterator[scoring_pb2.SampledSequence]:
        """Ask the service to sample."""
