"""Generates samples with a key-value cache, a batch of sequences at a time, continuously refilled.

Between blocks of decode steps the host looks for stop strings, hands out what is finished and gives
its row to the next sample. Prompts are read between blocks too, each once for all its samples.
"""

from collections import deque
from collections.abc import Generator, Iterator

import jax

from distill.engine.buckets import cache_slots, power_of_two_at_least, power_of_two_at_most
from distill.engine.cache_budget import CacheBudget
from distill.engine.decode_slots import DecodeSlots
from distill.engine.decoding_functions import DecodingFunctions
from distill.engine.device_queue import Rest
from distill.engine.prompt_reader import PromptReader
from distill.engine.samples import GrowingSample, SampleEnds, SampleJob, growing_samples
from distill.engine.weights import ModelWeights
from distill.models.loading import LoadedModel
from distill.network.functional import Cache, head_kernel, init_cache
from distill.samples import Sample

_MAX_BATCH = 32
"""Sequences that advance together: the weights are read once per step for all of them."""

_CACHE_BYTES = 2 << 30
"""Bound on the key-value cache of a batch, at its longest."""

_ALL_CACHES_BYTES = 2 * _CACHE_BYTES
"""Bound on the caches of all jobs under way together. The prompts that a job has read and not
placed yet come on top; they take at most as much as its batch."""

_REST_SECONDS = 0.02
"""How often a job that waits for memory looks whether there is some."""

_FIRST_TOKENS = 64
"""Generated tokens that a new cache has room for. It grows later: each step reads all of it."""


class Sampler:
    """Samples under any weights of one model.

    Holds compiled functions and no weights; `sample` may be called from any thread, and its
    iterator belongs on the device queue.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._functions = DecodingFunctions()
        self._budget = CacheBudget(_ALL_CACHES_BYTES)

    @property
    def compile_count(self) -> int:
        """Shapes compiled so far. It stands still once the shapes of the traffic are warm."""
        return self._functions.compile_count

    def sample(self, job: SampleJob, weights: ModelWeights) -> Iterator[Sample | Rest | None]:
        """Generate all samples of a job.

        Every `next()` reads a bounded number of prompt tokens or generates one block of tokens.
        The samples depend on the job and the weights alone.

        Args:
            job: what to sample.
            weights: what to compute under.

        Yields:
            Samples as they finish, each (prompt, sample) exactly once; None for a piece that
            finished none; a Rest while the jobs before it leave no memory for its cache.
        """
        tokenizer = self._model.tokenizer
        samples = growing_samples(job, max_position_count=self._model.config.max_position_count)
        yield from (sample.finished(tokenizer) for sample in samples if sample.stop_reason)
        # Prompts of similar length are side by side, so that they are read with little padding, and
        # so are all samples of a prompt. Short ones come first: the cache grows with the long ones.
        waiting = deque(
            sorted(
                (sample for sample in samples if sample.stop_reason is None),
                key=lambda sample: len(sample.prompt),
            )
        )
        if not waiting:
            return
        row_count, byte_count = self._batch_size(waiting, weights)
        lease = self._budget.ask(byte_count)
        try:
            while not lease.is_granted:
                yield Rest(seconds=_REST_SECONDS)
            yield from self._decode(job, weights, waiting, row_count)
        finally:
            lease.release()

    def _decode(
        self,
        job: SampleJob,
        weights: ModelWeights,
        waiting: deque[GrowingSample],
        row_count: int,
    ) -> Iterator[Sample | None]:
        """Generate the samples that wait, `row_count` of them side by side."""
        tokenizer = self._model.tokenizer
        slots = self._empty_slots(waiting, job, weights, row_count)
        reader = PromptReader(self._model, weights, self._functions)
        prompts: dict[int, Cache | None] = {}
        while waiting or not slots.is_empty:
            while waiting and slots.free_count:
                if waiting[0].prompt_index not in prompts:
                    prompts = yield from _read_next(reader, waiting, slots.free_count)
                sample = waiting.popleft()
                slots.place(sample, prompts[sample.prompt_index])
            if not waiting:
                prompts.clear()
                slots.shrink()
            ended = slots.advance()
            if not ended:
                yield None
            for sample in ended:
                yield sample.finished(tokenizer)

    def _batch_size(self, waiting: deque[GrowingSample], weights: ModelWeights) -> tuple[int, int]:
        """The rows of a batch, and the bytes of its cache at its longest."""
        config = self._model.config
        dtype = head_kernel(config, weights.parameters).dtype
        longest = max(len(sample.prompt) + sample.budget for sample in waiting)
        row = jax.eval_shape(lambda: init_cache(config, 1, cache_slots(longest), dtype))
        row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
        fitting = max(1, _CACHE_BYTES // row_bytes)
        row_count = min(
            _MAX_BATCH, power_of_two_at_least(len(waiting)), power_of_two_at_most(fitting)
        )
        return row_count, row_count * row_bytes

    def _empty_slots(
        self,
        waiting: deque[GrowingSample],
        job: SampleJob,
        weights: ModelWeights,
        row_count: int,
    ) -> DecodeSlots:
        first = list(waiting)[:row_count]
        return DecodeSlots(
            self._model,
            weights,
            self._functions,
            job=job,
            ends=SampleEnds.of_job(job, self._model.tokenizer),
            row_count=row_count,
            # Not for all tokens that may come: the first steps would be slow, and samples that end
            # early would never need the slots.
            slot_count=cache_slots(
                max(len(sample.prompt) + min(sample.budget, _FIRST_TOKENS) for sample in first)
            ),
        )


def _read_next(
    reader: PromptReader, waiting: deque[GrowingSample], free_count: int
) -> Generator[None, None, dict[int, Cache | None]]:
    """Read the prompts of the next samples, at most as many as there are free rows."""
    prompts = {sample.prompt_index: sample.prompt for sample in list(waiting)[:free_count]}
    caches = yield from reader.read_some(list(prompts.values()))
    return dict(zip(prompts, caches, strict=False))
