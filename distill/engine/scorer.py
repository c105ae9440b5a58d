"""Scores prompts: distributions of the wanted rows, in chunks, as they are computed.

The body runs over a pack of prompts; then the head runs over the wanted rows of the pack, a bounded
number at a time, so the logits of a prompt never exist whole.

Letters: N slots of a pack, P rows of a call of the head, D hidden size, K support size,
V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from distill.arrays import Int32Array
from distill.engine.buckets import power_of_two_at_least, power_of_two_at_most
from distill.engine.compiled import CompiledFunctions
from distill.engine.scoring_jobs import IsWanted, ScoreJob, always_wanted
from distill.engine.scoring_plan import PlacedJob, ScoringPack, plan_packs
from distill.engine.supports import (
    Candidates,
    Draws,
    candidate_block,
    draw_key,
    sampled_head,
)
from distill.engine.weights import ModelWeights
from distill.kernels.profile import device_profile
from distill.models.loading import LoadedModel
from distill.network.functional import head_weights, packed_hidden_states
from distill.ops.logits import Head
from distill.ops.sampled_support import SampledRows, candidate_rows
from distill.ops.topk import TopKRows, scoring_chunk_rows, top_k_rows
from distill.rows import Rows

_CHUNK_BYTES = 256 << 10
"""Largest chunk, as bytes of its arrays: gRPC moves chunks of this size at full speed, and a
reader that stalls holds few of them."""

_CALL_BYTES = 4 << 20
"""Largest result of one call of the head: it stays in memory while its chunks are read."""

_CALL_DRAWS = 1 << 14
"""Most draws of one call of the head: each looks at a block of the vocabulary."""

_SMALLEST_TOP_K = 8
_SMALLEST_CALL_ROWS = 16


HeadArrays: TypeAlias = dict[str, NDArray[Any]]
"""The arrays of `Rows` by name, of all rows of a call of the head; K as it is compiled."""


@dataclass(frozen=True, kw_only=True)
class _RowRange:
    """Consecutive wanted rows of one prompt that share a call of the head."""

    placed: PlacedJob
    first_row: int
    row_count: int

    @property
    def job(self) -> ScoreJob:
        return self.placed.job

    @property
    def rows(self) -> Int32Array:
        return np.arange(self.first_row, self.first_row + self.row_count, dtype=np.int32)

    @property
    def rows_of_job(self) -> slice:
        """The rows counted from the first that the job wants, as its candidates are."""
        first = self.first_row - self.job.score_from
        return slice(first, first + self.row_count)


class Scorer:
    """Computes distributions under any weights of one model.

    Holds compiled functions and no weights; `score` may be called from any thread, and its
    iterator belongs on the device queue.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._config = model.config
        profile = device_profile()
        self.token_budget = profile.scoring_token_budget
        self._shared_prefix_budget = profile.shared_prefix_token_budget
        self._compiled = CompiledFunctions()
        self._body = self._compiled.add(packed_hidden_states, static_argnames="graph")
        self._gather = self._compiled.add(_gather)
        self._head = self._compiled.add(top_k_rows, static_argnames="top_k")
        self._candidate_head = self._compiled.add(candidate_rows)
        self._sampled_head = self._compiled.add(
            sampled_head, static_argnames=("slot_count", "head_slot_count")
        )
        self._graph = model.graph
        self.shares_prefixes = not model.config.is_recurrent
        """Whether a prefix that prompts share is computed once."""
        self.head_rows_computed = 0
        """Rows of logits computed so far, without padding."""
        self.body_tokens_computed = 0
        """Tokens that went through the body so far, without padding; shared ones count once."""

    @property
    def compile_count(self) -> int:
        """Shapes compiled so far. It stands still once the shapes of the traffic are warm."""
        return self._compiled.compile_count

    def score(self, jobs: Sequence[ScoreJob], weights: ModelWeights) -> Iterator[Rows]:
        """The chunks of `score_jobs` alone; a `next()` may compute a body as well as a head."""
        return (result[1] for result in self.score_jobs(jobs, weights) if result is not None)

    def score_jobs(
        self,
        jobs: Sequence[ScoreJob],
        weights: ModelWeights,
        is_wanted: IsWanted = always_wanted,
    ) -> Iterator[tuple[ScoreJob, Rows] | None]:
        """Score prompts, a pack of them after the other.

        Every `next()` computes at most one pack's body or one call of the head.

        Args:
            jobs: the prompts; supports, K and temperatures may differ.
            weights: what to compute under.
            is_wanted: asked before each body and each call of the head: a job that is no longer
                wanted costs no further compute.

        Yields:
            Each chunk with its job, and None for a piece without a result. The chunks of a job
            come in order and tile [score_from, T) exactly once, up to where it is not wanted.
        """
        head = head_weights(self._config, weights.parameters, weights.adapter, weights.head_columns)
        for planned in self._wanted_packs(jobs, is_wanted):
            hidden = self._compute_body(planned, weights)
            yield None
            for ranges in self._head_calls(planned, is_wanted):
                for job, chunk in _chunks(self._compute_head(hidden, head, ranges), ranges):
                    if is_wanted(job):
                        yield job, chunk

    def _wanted_packs(self, jobs: Sequence[ScoreJob], is_wanted: IsWanted) -> Iterator[ScoringPack]:
        """The packs. When the turn of one comes that is not wanted whole, it is planned anew."""
        for planned in self._plan(jobs):
            wanted = [placed.job for placed in planned.jobs if is_wanted(placed.job)]
            if len(wanted) == len(planned.jobs):
                yield planned
            else:
                yield from self._plan(wanted)

    def _plan(self, jobs: Sequence[ScoreJob]) -> Iterable[ScoringPack]:
        return plan_packs(
            jobs,
            self.token_budget,
            shared_prefix_budget=self._shared_prefix_budget,
            shares_prefixes=self.shares_prefixes,
        )

    def _compute_body(self, planned: ScoringPack, weights: ModelWeights) -> jax.Array:
        pack = planned.pack
        self.body_tokens_computed += sum(
            len(placed.job.token_ids) - 1 - placed.prefix_length for placed in planned.jobs
        ) + sum(
            {
                placed.prefix_slot: placed.prefix_length
                for placed in planned.jobs
                if placed.prefix_length
            }.values()
        )
        hidden: jax.Array = self._body(
            self._graph,
            weights.parameters,
            pack.token_ids,
            pack.segments,
            adapter=weights.adapter,
        )
        hidden.block_until_ready()  # the piece is over when its compute is
        return hidden

    def _head_calls(self, planned: ScoringPack, is_wanted: IsWanted) -> Iterator[list[_RowRange]]:
        """The wanted rows of a pack, at most a call's at a time and none more than once."""
        for _, same in groupby(sorted(planned.jobs, key=self._head_kind), key=self._head_kind):
            placed_jobs = list(same)
            ranges: list[_RowRange] = []
            call_rows = self._call_rows(placed_jobs[0].job)
            room = call_rows
            for placed in placed_jobs:
                row, end = placed.job.score_from, len(placed.job.token_ids)
                while row < end and is_wanted(placed.job):
                    row_count = min(room, end - row)
                    ranges.append(_RowRange(placed=placed, first_row=row, row_count=row_count))
                    row += row_count
                    room -= row_count
                    if room == 0:
                        yield ranges
                        ranges, room = [], call_rows
            if ranges:
                yield ranges

    def _head_kind(self, placed: PlacedJob) -> tuple[str, int]:
        """What must be the same in one call: the kind of support, and K as it is compiled."""
        return type(placed.job.support).__name__, self._top_k_bucket(placed.job.top_k)

    def _compute_head(self, hidden: jax.Array, head: Head, ranges: list[_RowRange]) -> HeadArrays:
        """One call of the head, padded at the end."""
        row_count = sum(part.row_count for part in ranges)
        padded_count = self._padded_rows(row_count, self._call_rows(ranges[0].job))
        slots = np.zeros(padded_count, np.int32)
        row_numbers = np.ones(padded_count, np.int32)
        prompt_token_ids = np.zeros(padded_count, np.int32)
        temperatures = np.ones(padded_count, np.float32)
        support_sizes = np.ones(padded_count, np.int32)
        start = 0
        for part in ranges:
            here = slice(start, start + part.row_count)
            row_numbers[here] = part.rows
            slots[here] = part.placed.slots(part.rows)
            prompt_token_ids[here] = part.job.token_ids[part.rows]
            temperatures[here] = part.job.temperature
            support_sizes[here] = part.job.top_k
            start += part.row_count
        self.head_rows_computed += row_count
        rows_of_head = (
            self._gather(hidden, slots),
            head,
            prompt_token_ids,
            temperatures,
            support_sizes,
        )
        if ranges[0].job.support is not None:
            return self._compute_support(rows_of_head, ranges, row_numbers)
        outputs: TopKRows = self._head(*rows_of_head, top_k=self._top_k_bucket(ranges[0].job.top_k))
        return _by_name(outputs)

    def _compute_support(
        self, rows_of_head: tuple[Any, ...], ranges: list[_RowRange], row_numbers: Int32Array
    ) -> HeadArrays:
        """One call of the head on a support that is not the K most probable tokens.

        Args:
            rows_of_head: the head's first arguments, of P rows.
            ranges: whose rows they are.
            row_numbers: [P], in prompt coordinates.
        """
        width = self._top_k_bucket(ranges[0].job.top_k)
        padded_count = len(row_numbers)
        named = [
            part.job.support.token_ids[part.rows_of_job]
            for part in ranges
            if isinstance(part.job.support, Candidates)
        ]
        if named:
            block = candidate_block(named, padded_count, width)
            rows: TopKRows = self._candidate_head(*rows_of_head, block)
            return _by_name(rows)
        exact_counts = np.zeros(padded_count, np.int32)
        key_data = np.zeros((padded_count, 2), np.uint32)
        start = 0
        for part in ranges:
            here = slice(start, start + part.row_count)
            draws = part.job.support
            assert isinstance(draws, Draws)
            exact_counts[here] = draws.exact_count
            key_data[here] = draw_key(draws.seed, part.job.token_ids)
            start += part.row_count
        largest_head = int(exact_counts.max())
        sampled: SampledRows = self._sampled_head(
            *rows_of_head,
            exact_counts,
            key_data,
            row_numbers,
            slot_count=width,
            head_slot_count=min(width, self._top_k_bucket(largest_head)) if largest_head else 0,
        )
        return {**_by_name(sampled.rows), "draw_weights": np.asarray(sampled.draw_weights)}

    def _call_rows(self, job: ScoreJob) -> int:
        """Most rows of one call of the head."""
        width = self._top_k_bucket(job.top_k)
        most = _CALL_BYTES // (8 * width)
        if isinstance(job.support, Draws):
            most = min(most, _CALL_DRAWS // width)
        fitting = power_of_two_at_most(max(1, most))
        return min(scoring_chunk_rows(self._config.vocab_size), fitting)

    def _padded_rows(self, row_count: int, call_rows: int) -> int:
        """Rows as they are compiled: few sizes, because each costs a compilation."""
        size = _SMALLEST_CALL_ROWS
        while size < row_count:
            size *= 4
        return min(size, call_rows)

    def _top_k_bucket(self, top_k: int) -> int:
        """K as it is compiled."""
        bucket = max(_SMALLEST_TOP_K, power_of_two_at_least(top_k))
        return min(bucket, self._config.valid_vocab_size)


def _gather(hidden: jax.Array, slots: jax.Array) -> jax.Array:
    # A program of its own: inside the head's, each shape of the body would compile a head.
    return hidden[slots]


def _own(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[Any]:
    """The part in memory of its own: a view would keep the whole result of the call alive."""
    return part if part.nbytes == whole.nbytes else part.copy()


def _by_name(rows: TopKRows) -> HeadArrays:
    return {name: np.asarray(array) for name, array in rows._asdict().items()}


def _chunks(arrays: HeadArrays, ranges: Sequence[_RowRange]) -> Iterator[tuple[ScoreJob, Rows]]:
    """Cut the result of one call into chunks: rows of one prompt, of bounded size."""
    start = 0
    for part in ranges:
        top_k = part.job.top_k
        row_bytes = sum(4 * (top_k if array.ndim == 2 else 1) for array in arrays.values())
        most_rows = max(1, _CHUNK_BYTES // row_bytes)
        for offset in range(0, part.row_count, most_rows):
            end = min(offset + most_rows, part.row_count)
            here = slice(start + offset, start + end)
            cut: dict[str, Any] = {
                name: _own(array[here, :top_k] if array.ndim == 2 else array[here], array)
                for name, array in arrays.items()
            }
            yield (
                part.job,
                Rows(
                    prompt_index=part.job.prompt_index,
                    first_row=part.first_row + offset,
                    most_probable=part.job.support is None,
                    **cut,
                ),
            )
        start += part.row_count
