"""Scores prompts: top-K distributions of the wanted rows, in chunks, as they are computed.

The body runs over a batch of prompts of one length bucket; then the head runs over the wanted rows
of the batch, a bounded number at a time, so the logits of a prompt never exist whole.

Letters: T tokens of a prompt, B prompts of a batch, L their padded length, P rows of a chunk,
D hidden size, K support size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from distill.engine.buckets import (
    batch_sizes,
    length_bucket,
    power_of_two_at_least,
    power_of_two_at_most,
)
from distill.engine.compiled import CompiledFunctions
from distill.engine.supports import (
    Candidates,
    Draws,
    Support,
    candidate_block,
    draw_key,
    sampled_head,
)
from distill.engine.weights import ModelWeights
from distill.limits import RequestLimits
from distill.models.functional import Adapter, Graph, Parameters, head_kernel, hidden_states
from distill.models.loading import LoadedModel
from distill.ops.supports import SampledRows, candidate_rows
from distill.ops.topk import TopKRows, scoring_chunk_rows, top_k_rows
from distill.tensors import FloatArray, Int32Array

_CHUNK_BYTES = 256 << 10
"""Largest chunk, as bytes of its arrays: gRPC moves chunks of this size at full speed, and a
reader that stalls holds few of them."""

_CALL_BYTES = 4 << 20
"""Largest result of one call of the head: it stays in memory while its chunks are read."""

_CALL_DRAWS = 1 << 14
"""Most draws of one call of the head: each looks at a block of the vocabulary."""

_SMALLEST_TOP_K = 8
_SMALLEST_CALL_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """One prompt to score, already validated."""

    row: int
    """Index of the prompt in its request; names it in the chunks."""

    token_ids: Int32Array
    """[T], T >= 2."""

    score_from: int
    """First wanted row, in [1, T). Row i is the distribution over token i given those before."""

    top_k: int
    """K, in [1, V]."""

    temperature: float
    """Divides the logits; greater than 0."""

    support: Support = None
    """Which K tokens; None: the most probable."""


@dataclass(frozen=True, kw_only=True)
class ScoredChunk:
    """Distributions of P consecutive rows of one prompt; fields as in the message TopKChunk."""

    row: int
    """The prompt."""

    position_offset: int
    """The first of the rows, in prompt coordinates."""

    token_ids: Int32Array
    """[P, K], in the order of the support."""

    log_probs: FloatArray
    """[P, K]."""

    prompt_log_probs: FloatArray
    """[P], of the prompt's own tokens."""

    tail_log_probs: FloatArray
    """[P], of everything outside the support."""

    entropies: FloatArray
    """[P], in nats."""

    weights: FloatArray | None = None
    """[P, K], of a sampled support."""


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """Consecutive wanted rows of one prompt that share a call of the head."""

    job: ScoreJob
    batch_index: int
    first_row: int
    row_count: int


class Scorer:
    """Computes distributions under any weights of one model.

    Holds compiled functions and no weights; `score` may be called from any thread, and its
    iterator belongs on the device queue.
    """

    def __init__(self, model: LoadedModel, limits: RequestLimits) -> None:
        self._config = model.config
        self._longest = limits.max_sequence_tokens
        # A piece of the body: short on a CPU, whose time per token is long and where a small
        # matmul is as efficient; large enough on an accelerator to fill it.
        self.batch_tokens = 1024 if jax.default_backend() == "cpu" else 16384
        """Most padded tokens of one piece of the body."""
        self._compiled = CompiledFunctions()
        self._body = self._compiled.add(_body, static_argnames="graph")
        self._gather = self._compiled.add(_gather)
        self._head = self._compiled.add(top_k_rows, static_argnames="top_k")
        self._candidate_head = self._compiled.add(candidate_rows)
        self._sampled_head = self._compiled.add(
            sampled_head, static_argnames=("slot_count", "head_slot_count")
        )
        self._graph = model.graph
        self.head_rows_computed = 0
        """Rows of logits computed so far, without padding."""

    @property
    def compile_count(self) -> int:
        """Shapes compiled so far. It stands still once the shapes of the traffic are warm."""
        return self._compiled.compile_count

    def score(self, jobs: Sequence[ScoreJob], weights: ModelWeights) -> Iterator[ScoredChunk]:
        """Score prompts in batches, short ones first.

        Every `next()` computes at most one batch of the body and one chunk of the head.

        Args:
            jobs: the prompts, with the same `top_k` and the same kind of support.
            weights: what to compute under.

        Yields:
            The chunks. Those of a job come in order and tile [score_from, T) exactly once.
        """
        kernel = head_kernel(self._config, weights.parameters)
        for batch in self._batches(jobs):
            # Its last token is only ever a target.
            length = self._bucket(batch[0])
            token_ids = np.zeros((len(batch), length), np.int32)
            for batch_index, job in enumerate(batch):
                token_ids[batch_index, : len(job.token_ids) - 1] = job.token_ids[:-1]
            hidden = self._body(self._graph, weights.parameters, weights.adapter, token_ids)
            for segments in self._head_calls(batch):
                rows = self._score_rows(hidden, kernel, segments)
                yield from _chunks(rows, segments)

    def _bucket(self, job: ScoreJob) -> int:
        return min(length_bucket(len(job.token_ids) - 1), max(1, self._longest - 1))

    def _batches(self, jobs: Sequence[ScoreJob]) -> Iterator[list[ScoreJob]]:
        """Jobs of one length bucket, as many as the token budget allows."""
        for length, group in groupby(sorted(jobs, key=self._bucket), key=self._bucket):
            waiting = list(group)
            largest = power_of_two_at_most(max(1, self.batch_tokens // length))
            for size in batch_sizes(len(waiting), largest):
                yield waiting[:size]
                del waiting[:size]

    def _head_calls(self, batch: list[ScoreJob]) -> Iterator[list[_Segment]]:
        """The wanted rows of a batch, at most a chunk's at a time and none more than once."""
        segments: list[_Segment] = []
        call_rows = self._call_rows(batch[0])
        room = call_rows
        for batch_index, job in enumerate(batch):
            row = job.score_from
            while row < len(job.token_ids):
                row_count = min(room, len(job.token_ids) - row)
                segments.append(
                    _Segment(job=job, batch_index=batch_index, first_row=row, row_count=row_count)
                )
                row += row_count
                room -= row_count
                if room == 0:
                    yield segments
                    segments, room = [], call_rows
        if segments:
            yield segments

    def _score_rows(
        self, hidden: jax.Array, kernel: jax.Array, segments: list[_Segment]
    ) -> Sequence[NDArray[Any]]:
        """One call of the head: the fields of TopKRows in NumPy, padded at the end; then weights
        where the support is sampled."""
        top_k = segments[0].job.top_k
        row_count = sum(segment.row_count for segment in segments)
        padded_count = min(
            self._call_rows(segments[0].job),
            max(_SMALLEST_CALL_ROWS, power_of_two_at_least(row_count)),
        )
        batch_indices = np.zeros(padded_count, np.int32)
        positions = np.zeros(padded_count, np.int32)
        prompt_token_ids = np.zeros(padded_count, np.int32)
        temperatures = np.ones(padded_count, np.float32)
        support_sizes = np.full(padded_count, top_k, np.int32)
        start = 0
        for segment in segments:
            here = slice(start, start + segment.row_count)
            rows = np.arange(segment.first_row, segment.first_row + segment.row_count)
            batch_indices[here] = segment.batch_index
            positions[here] = rows - 1  # the position that predicts the row's token
            prompt_token_ids[here] = segment.job.token_ids[rows]
            temperatures[here] = segment.job.temperature
            start += segment.row_count
        self.head_rows_computed += row_count
        rows_of_head = (
            self._gather(hidden, batch_indices, positions),
            kernel,
            prompt_token_ids,
            temperatures,
            support_sizes,
        )
        if segments[0].job.support is not None:
            return self._score_support(rows_of_head, segments, positions + 1)
        outputs: TopKRows = self._head(*rows_of_head, top_k=self._top_k_bucket(top_k))
        return [np.asarray(array) for array in outputs]

    def _score_support(
        self, rows_of_head: tuple[Any, ...], segments: list[_Segment], row_numbers: Int32Array
    ) -> Sequence[NDArray[Any]]:
        """The same on a support that is not the K most probable tokens.

        Args:
            rows_of_head: the head's first arguments, of P rows.
            segments: whose rows they are.
            row_numbers: [P], in prompt coordinates.
        """
        width = self._top_k_bucket(segments[0].job.top_k)
        padded_count = len(row_numbers)
        named = [
            (
                segment.job.support,
                segment.first_row - segment.job.score_from,
                segment.first_row - segment.job.score_from + segment.row_count,
            )
            for segment in segments
            if isinstance(segment.job.support, Candidates)
        ]
        if named:
            block = candidate_block(named, padded_count, width)
            rows: TopKRows = self._candidate_head(*rows_of_head, block)
            return [np.asarray(array) for array in rows]
        exact_counts = np.zeros(padded_count, np.int32)
        key_data = np.zeros((padded_count, 2), np.uint32)
        start = 0
        for segment in segments:
            here = slice(start, start + segment.row_count)
            draws = segment.job.support
            assert isinstance(draws, Draws)
            exact_counts[here] = draws.exact_count
            key_data[here] = draw_key(draws.seed, segment.job.token_ids)
            start += segment.row_count
        largest_head = int(exact_counts.max())
        sampled: SampledRows = self._sampled_head(
            *rows_of_head,
            exact_counts,
            key_data,
            row_numbers,
            slot_count=width,
            head_slot_count=min(width, self._top_k_bucket(largest_head)) if largest_head else 0,
        )
        return [np.asarray(array) for array in (*sampled.rows, sampled.weights)]

    def _call_rows(self, job: ScoreJob) -> int:
        """Most rows of one call of the head."""
        width = self._top_k_bucket(job.top_k)
        most = _CALL_BYTES // (8 * width)
        if isinstance(job.support, Draws):
            most = min(most, _CALL_DRAWS // width)
        fitting = power_of_two_at_most(max(1, most))
        return min(scoring_chunk_rows(self._config.vocab_size), fitting)

    def _top_k_bucket(self, top_k: int) -> int:
        """K as it is compiled."""
        bucket = max(_SMALLEST_TOP_K, power_of_two_at_least(top_k))
        return min(bucket, int(self._config.vocab_size))


def _body(
    graph: Graph,
    parameters: Parameters,
    adapter: Adapter | None,
    token_ids: jax.Array,
) -> jax.Array:
    return hidden_states(graph, parameters, token_ids, adapter=adapter)


def _gather(hidden: jax.Array, batch_indices: jax.Array, positions: jax.Array) -> jax.Array:
    # Apart from the head, so that the head is not compiled anew for every shape of the body.
    return hidden[batch_indices, positions]


def _chunks(rows: Sequence[NDArray[Any]], segments: list[_Segment]) -> Iterator[ScoredChunk]:
    """Cut the result of one call into chunks of one prompt and of bounded size."""
    token_ids, log_probs, prompt_log_probs, tail_log_probs, entropies, *weights = rows
    start = 0
    for segment in segments:
        top_k = segment.job.top_k
        most_rows = max(1, _CHUNK_BYTES // ((12 if weights else 8) * top_k + 12))
        for offset in range(0, segment.row_count, most_rows):
            end = min(offset + most_rows, segment.row_count)
            here = slice(start + offset, start + end)
            yield ScoredChunk(
                row=segment.job.row,
                position_offset=segment.first_row + offset,
                token_ids=token_ids[here, :top_k],
                log_probs=log_probs[here, :top_k],
                prompt_log_probs=prompt_log_probs[here],
                tail_log_probs=tail_log_probs[here],
                entropies=entropies[here],
                weights=weights[0][here, :top_k] if weights else None,
            )
        start += segment.row_count
