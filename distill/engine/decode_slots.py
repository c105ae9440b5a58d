"""The rows of a decode batch: which sample each holds, where it stands, and their common cache.

Letters: B rows, S slots of the cache, L layers.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from distill.engine.buckets import cache_slots, power_of_two_at_least
from distill.engine.decoding import BLOCK_STEPS, DecodeRows, DrawSettings
from distill.engine.decoding_functions import DecodingFunctions
from distill.engine.layer_parts import decode_parts
from distill.engine.samples import GrowingSample, SampleEnds, SampleJob
from distill.engine.weights import ModelWeights
from distill.models.loading import LoadedModel
from distill.network.functional import Cache, head_kernel, init_cache
from distill.ops.sampling import SamplingSettings

_SMALLEST_STOP_COUNT = 4

_SHRINK_FACTOR = 4
"""A batch shrinks by this factor when the rows in use fit. A smaller factor would mean more sizes
to compile, for little: half a batch takes more than half of a whole one's time."""


class DecodeSlots:
    """A batch of samples that grow together. Between blocks, only its cache is on the device."""

    def __init__(
        self,
        model: LoadedModel,
        weights: ModelWeights,
        functions: DecodingFunctions,
        *,
        job: SampleJob,
        ends: SampleEnds,
        row_count: int,
        slot_count: int,
    ) -> None:
        """Make an empty batch.

        Args:
            model: what computes.
            weights: what it computes under.
            functions: compiled.
            job: says how tokens are drawn.
            ends: what ends a sample.
            row_count: B at first.
            slot_count: S at first.
        """
        self._model = model
        self._weights = weights
        self._functions = functions
        self._ends = ends
        self._settings = _draw_settings(job, ends.stop_token_ids, model.config.vocab_size)
        self._parts = decode_parts(model.config, weights)
        self._samples: list[GrowingSample | None] = [None] * row_count
        self._slot_count = slot_count
        self._cache: Cache = init_cache(
            model.config,
            row_count,
            slot_count,
            head_kernel(model.config, weights.parameters).dtype,
            part_sizes=None if self._parts is None else [1] * model.config.layer_count,
        )

    @property
    def free_count(self) -> int:
        """Rows that hold no sample."""
        return self._samples.count(None)

    @property
    def is_empty(self) -> bool:
        """Whether no row holds a sample."""
        return self.free_count == len(self._samples)

    def place(self, sample: GrowingSample, prompt: Cache | None) -> None:
        """Give a free row to a sample.

        Args:
            sample: it has no tokens yet.
            prompt: the cache that its prompt was read into; None: the prompt's only token is the
                row's first input, and nothing comes before it.
        """
        row = self._samples.index(None)
        self._samples[row] = sample
        if prompt is not None:
            self._reserve(len(sample.prompt) - 1)
            self._cache = self._functions.place_prompt(self._cache, prompt, np.int32(row))

    def shrink(self) -> None:
        """Drop free rows where they are most of the batch."""
        held = [row for row, sample in enumerate(self._samples) if sample is not None]
        while held and len(held) * _SHRINK_FACTOR <= len(self._samples):
            # Row 0 fills it up: what the free rows hold does not matter.
            count = max(1, len(self._samples) // _SHRINK_FACTOR)
            rows = (held + [0] * count)[:count]
            self._cache = self._functions.take_rows(self._cache, np.asarray(rows, np.int32))
            self._samples = [self._samples[row] for row in held]
            self._samples += [None] * (count - len(held))
            held = list(range(len(held)))

    def advance(self) -> list[GrowingSample]:
        """Generate up to BLOCK_STEPS tokens for every sample; those that ended leave their rows."""
        held = [(row, sample) for row, sample in enumerate(self._samples) if sample is not None]
        for _, sample in held:
            token_count = len(sample.prompt) + len(sample.token_ids)
            # The last token of a sample is never an input and needs no slot.
            self._reserve(min(token_count + BLOCK_STEPS, len(sample.prompt) + sample.budget) - 1)
        self._cache, block = self._functions.decode_block(
            self._model.graph,
            self._model.config,
            self._weights.parameters,
            self._weights.adapter,
            self._weights.head_columns,
            self._parts,
            self._cache,
            _decode_rows(self._samples),
            self._settings,
        )
        token_ids, log_probs, token_counts = map(np.asarray, block)
        ended = []
        for row, sample in held:
            count = int(token_counts[row])
            sample.extend(token_ids[row, :count], log_probs[row, :count], self._ends)
            if sample.stop_reason is not None:
                self._samples[row] = None
                ended.append(sample)
        return ended

    def _reserve(self, slot_count: int) -> None:
        if slot_count > self._slot_count:
            self._slot_count = cache_slots(slot_count)
            self._cache = self._functions.grow_cache(self._cache, slot_count=self._slot_count)


def _decode_rows(samples: Sequence[GrowingSample | None]) -> DecodeRows:
    row_count = len(samples)
    rows = DecodeRows(
        inputs=np.zeros(row_count, np.int32),
        positions=np.zeros(row_count, np.int32),
        remaining=np.zeros(row_count, np.int32),
        is_done=np.ones(row_count, np.bool),
        sample_ids=np.zeros((row_count, 2), np.uint32),
    )
    for row, sample in enumerate(samples):
        if sample is None:
            continue
        rows.inputs[row] = (sample.token_ids or sample.prompt)[-1]
        rows.positions[row] = len(sample.prompt) + len(sample.token_ids) - 1
        rows.remaining[row] = sample.budget - len(sample.token_ids)
        rows.is_done[row] = False
        rows.sample_ids[row] = sample.prompt_index, sample.sample_index
    return rows


def _draw_settings(job: SampleJob, stop_token_ids: Sequence[int], vocab_size: int) -> DrawSettings:
    stops = np.full(
        max(_SMALLEST_STOP_COUNT, power_of_two_at_least(max(1, len(stop_token_ids)))), -1, np.int32
    )
    stops[: len(stop_token_ids)] = stop_token_ids
    return DrawSettings(
        # Both halves of the seed: jax.random.key drops the upper one.
        seed=np.array([(job.seed >> 32) & 0xFFFFFFFF, job.seed & 0xFFFFFFFF], np.uint32),
        stop_token_ids=stops,
        sampling=SamplingSettings(
            temperature=jnp.float32(job.temperature),
            top_k=jnp.int32(vocab_size if job.top_k is None else job.top_k),
            top_p=jnp.float32(job.top_p),
        ),
    )
