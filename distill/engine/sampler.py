"""Generates samples with a key-value cache, a batch of sequences at a time.

The prompts of a batch are read once each (samples of one prompt share that), then all its sequences
advance together by blocks of steps in one compiled call; between blocks the host looks for stop
strings and hands out what is finished.

Letters: B sequences of a batch, T tokens of a prompt, S slots of the cache, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

import jax
import numpy as np

from distill.engine.buckets import (
    batch_sizes,
    cache_slots,
    length_bucket,
    power_of_two_at_most,
)
from distill.engine.compiled import CompiledFunctions
from distill.engine.decoding import (
    BLOCK_STEPS,
    DecodeState,
    decode_block,
    grow_cache,
    new_state,
    place_prompts,
    read_prompts,
)
from distill.engine.weights import ModelWeights
from distill.models.functional import KVCache, head_kernel
from distill.models.loading import LoadedModel
from distill.tensors import FloatArray, Int32Array
from distill.tokenizer import TextTokenizer

_MAX_BATCH = 32
"""Sequences that advance together: the weights are read once per step for all of them."""

_CACHE_BYTES = 2 << 30
"""Bound on the key-value cache of a batch, at its longest."""

_FIRST_TOKENS = 256
"""Generated tokens that the cache has room for before it grows."""


class StopReason(Enum):
    """Why a sample ended."""

    STOP = "a stop token or a stop string"
    LENGTH = "max_tokens, or the model's longest context"


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """A sampling request, already validated."""

    prompts: Sequence[Int32Array]
    """Each [T], T >= 1."""

    max_tokens: int
    """Most tokens to generate per sample."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""

    top_k: int | None = None
    """Keep only so many of the most probable tokens."""

    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""

    seed: int = 0
    """Of the random numbers, a signed 64-bit integer."""

    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a sample. Empty: the tokenizer's end tokens, unless `ignore_end_tokens`."""

    stop_strings: tuple[str, ...] = ()
    """Texts that end a sample; none is empty."""

    ignore_end_tokens: bool = False
    """Generate through the tokenizer's end tokens."""

    samples_per_prompt: int = 1
    """Samples of each prompt."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A finished sample; fields as in the message SampledSequence."""

    prompt_index: int
    """Index of the prompt in the job."""

    sample_index: int
    """Index among the samples of that prompt."""

    token_ids: Int32Array
    """[N], the stop token included."""

    log_probs: FloatArray
    """[N], over the full vocabulary after temperature."""

    stop_reason: StopReason
    """Why it ended."""

    text: str
    """Decoded, without special tokens."""


@dataclass(kw_only=True)
class _Sequence:
    """One sequence while it grows."""

    prompt_index: int
    sample_index: int
    prompt: Int32Array
    budget: int
    token_ids: list[int]
    log_probs: list[float]
    stop_reason: StopReason | None = None


class Sampler:
    """Samples under any weights of one model.

    Holds compiled functions and no weights; `sample` may be called from any thread, and its
    iterator belongs on the device queue.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._config = model.config
        self._graph = model.graph
        self._tokenizer = model.tokenizer
        # As for scoring: a piece stays short on a CPU and fills an accelerator.
        self._prefill_tokens = 1024 if jax.default_backend() == "cpu" else 16384
        self._compiled = CompiledFunctions()
        add = self._compiled.add
        self._read_prompts = add(read_prompts, static_argnames=("graph", "config"))
        self._place_prompts = add(place_prompts, donate_argnames="cache")
        self._grow_cache = add(grow_cache, static_argnames="slot_count")
        self._decode_block = add(
            decode_block, static_argnames=("graph", "config"), donate_argnames="state"
        )

    @property
    def compile_count(self) -> int:
        """Shapes compiled so far. It stands still once the shapes of the traffic are warm."""
        return self._compiled.compile_count

    def sample(self, job: SampleJob, weights: ModelWeights) -> Iterator[Sample | None]:
        """Generate all samples of a job.

        Every `next()` reads a bounded number of prompt tokens or generates one block of tokens.
        The samples depend on the job and the weights alone.

        Args:
            job: what to sample.
            weights: what to compute under.

        Yields:
            Samples as they finish, each (prompt, sample) exactly once; None for a piece that
            finished none.
        """
        sequences = [
            _Sequence(
                prompt_index=prompt_index,
                sample_index=sample_index,
                prompt=prompt,
                budget=min(job.max_tokens, self._config.max_position_count - len(prompt)),
                token_ids=[],
                log_probs=[],
            )
            for prompt_index, prompt in enumerate(job.prompts)
            for sample_index in range(job.samples_per_prompt)
        ]
        stop_token_ids = self._stop_token_ids(job)
        waiting = []
        for sequence in sequences:
            if sequence.budget < 1:
                # The prompt fills the context: there is no room for a token.
                sequence.stop_reason = StopReason.LENGTH
                yield _finished(sequence, self._tokenizer)
            else:
                waiting.append(sequence)
        for batch in self._batches(waiting):
            yield from self._sample_batch(batch, job, stop_token_ids, weights)

    def _stop_token_ids(self, job: SampleJob) -> tuple[int, ...]:
        if job.stop_token_ids or job.ignore_end_tokens:
            return job.stop_token_ids
        return self._tokenizer.end_token_ids

    def _batches(self, sequences: list[_Sequence]) -> Iterator[list[_Sequence]]:
        """Sequences of similar length together, so that short ones carry little padding."""
        config = self._config
        slot_bytes = 2 * 4 * config.layer_count * config.key_value_head_count * config.head_dim
        waiting = sorted(sequences, key=lambda sequence: len(sequence.prompt))
        while waiting:
            longest = max(len(sequence.prompt) + sequence.budget for sequence in waiting)
            fitting = max(1, _CACHE_BYTES // (slot_bytes * cache_slots(longest + BLOCK_STEPS)))
            size = min(_MAX_BATCH, power_of_two_at_most(fitting))
            yield waiting[:size]
            waiting = waiting[size:]

    def _sample_batch(
        self,
        batch: list[_Sequence],
        job: SampleJob,
        stop_token_ids: tuple[int, ...],
        weights: ModelWeights,
    ) -> Iterator[Sample | None]:
        kernel = head_kernel(self._config, weights.parameters)
        longest = max(len(sequence.prompt) for sequence in batch)
        budget = max(sequence.budget for sequence in batch)
        # A cache for all that may come would waste memory where most samples end early.
        slot_count = cache_slots(longest + min(budget, _FIRST_TOKENS) + BLOCK_STEPS)
        state = new_state(
            self._config,
            prompts=[sequence.prompt for sequence in batch],
            budgets=[sequence.budget for sequence in batch],
            stream_ids=[(sequence.prompt_index, sequence.sample_index) for sequence in batch],
            seed=job.seed,
            temperature=job.temperature,
            top_k=job.top_k,
            top_p=job.top_p,
            stop_token_ids=stop_token_ids,
            slot_count=slot_count,
            dtype=kernel.dtype,
        )
        for cache in self._prefill(batch, state, weights):
            state = state._replace(cache=cache)
            yield None
        while any(sequence.stop_reason is None for sequence in batch):
            longest_now = max(len(item.prompt) + len(item.token_ids) for item in batch)
            if longest_now + BLOCK_STEPS > slot_count:
                slot_count = cache_slots(longest_now + BLOCK_STEPS)
                state = state._replace(cache=self._grow_cache(state.cache, slot_count=slot_count))
            state, token_ids, log_probs, token_counts = self._decode_block(
                self._graph, self._config, weights.parameters, weights.adapter, state
            )
            ended = self._collect(
                batch,
                job,
                stop_token_ids,
                np.asarray(token_ids),
                np.asarray(log_probs),
                np.asarray(token_counts),
            )
            state = state._replace(is_done=_done_rows(batch, len(token_counts)))
            if not ended:
                yield None
            for sequence in ended:
                yield _finished(sequence, self._tokenizer)

    def _prefill(
        self, batch: list[_Sequence], state: DecodeState, weights: ModelWeights
    ) -> Iterator[KVCache]:
        """Read the prompts of a batch into its cache; yields the cache after every piece.

        All but the last token of a prompt, which is the first input of decoding.
        """
        cache = state.cache
        rows_of_prompt: dict[int, list[int]] = {}
        for row, sequence in enumerate(batch):
            rows_of_prompt.setdefault(sequence.prompt_index, []).append(row)

        def bucket(rows: list[int]) -> int:
            return length_bucket(len(batch[rows[0]].prompt) - 1)

        longer = [rows for rows in rows_of_prompt.values() if len(batch[rows[0]].prompt) > 1]
        for length, group in groupby(longer, key=bucket):
            waiting = list(group)
            largest = power_of_two_at_most(max(1, self._prefill_tokens // length))
            for size in batch_sizes(len(waiting), largest):
                token_ids = np.zeros((size, length), np.int32)
                source = np.full(state.positions.shape, -1, np.int32)
                for index, rows in enumerate(waiting[:size]):
                    prompt = batch[rows[0]].prompt
                    token_ids[index, : len(prompt) - 1] = prompt[:-1]
                    source[rows] = index
                part = self._read_prompts(
                    self._graph, self._config, weights.parameters, weights.adapter, token_ids
                )
                cache = self._place_prompts(cache, part, source)
                cache.keys.block_until_ready()  # the piece is over when its compute is
                yield cache
                del waiting[:size]

    def _collect(
        self,
        batch: list[_Sequence],
        job: SampleJob,
        stop_token_ids: tuple[int, ...],
        token_ids: Int32Array,
        log_probs: FloatArray,
        token_counts: Int32Array,
    ) -> list[_Sequence]:
        """Append a block's tokens to the sequences; returns those that it ended."""
        ended = []
        for row, sequence in enumerate(batch):
            if sequence.stop_reason is not None:
                continue
            count = int(token_counts[row])
            known = len(sequence.token_ids)
            sequence.token_ids += token_ids[row, :count].tolist()
            sequence.log_probs += log_probs[row, :count].tolist()
            end = _stop_string_end(sequence.token_ids, known, job.stop_strings, self._tokenizer)
            if end is not None:
                del sequence.token_ids[end:], sequence.log_probs[end:]
                sequence.stop_reason = StopReason.STOP
            elif sequence.token_ids[-1] in stop_token_ids:
                sequence.stop_reason = StopReason.STOP
            elif len(sequence.token_ids) >= sequence.budget:
                sequence.stop_reason = StopReason.LENGTH
            if sequence.stop_reason is not None:
                ended.append(sequence)
        return ended


def _done_rows(
    batch: list[_Sequence], row_count: int
) -> "np.ndarray[tuple[int], np.dtype[np.bool]]":
    done = np.ones(row_count, np.bool)
    for row, sequence in enumerate(batch):
        done[row] = sequence.stop_reason is not None
    return done


def _stop_string_end(
    token_ids: list[int], known: int, stop_strings: tuple[str, ...], tokenizer: TextTokenizer
) -> int | None:
    """How many tokens there are up to the first that completes a stop string; None: none does.

    Args:
        token_ids: all tokens of the sample so far.
        known: how many of them were searched before, without success.
    """
    if not stop_strings:
        return None

    def has_stop(count: int) -> bool:
        # With special tokens: their texts are common stop strings.
        text = tokenizer.decode(token_ids[:count], skip_special_tokens=False)
        return any(stop in text for stop in stop_strings)

    # Every prefix, and not only the whole: bytes that do not yet make a character may show as one.
    return next((end for end in range(known + 1, len(token_ids) + 1) if has_stop(end)), None)


def _finished(sequence: _Sequence, tokenizer: TextTokenizer) -> Sample:
    assert sequence.stop_reason is not None
    return Sample(
        prompt_index=sequence.prompt_index,
        sample_index=sequence.sample_index,
        token_ids=np.asarray(sequence.token_ids, np.int32),
        log_probs=np.asarray(sequence.log_probs, np.float32),
        stop_reason=sequence.stop_reason,
        text=tokenizer.decode(sequence.token_ids),
    )
