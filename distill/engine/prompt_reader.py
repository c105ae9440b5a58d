"""Reads prompts into caches, in bounded pieces. All samples of a prompt start from its cache."""

from collections.abc import Generator, Sequence

import jax
import numpy as np

from distill.arrays import Int32Array
from distill.engine.buckets import cache_slots, length_bucket
from distill.engine.decoding_functions import DecodingFunctions
from distill.engine.weights import ModelWeights
from distill.kernels.profile import device_profile
from distill.models.loading import LoadedModel
from distill.network.functional import Cache, head_kernel, init_cache

_BATCH_SIZES = (16, 4, 1)
"""Prompts read at once. There are few sizes, for each is compiled for every length."""


class PromptReader:
    """Reads prompts under given weights.

    It reads all tokens of a prompt but the last, which is the first input of decoding.
    """

    def __init__(
        self, model: LoadedModel, weights: ModelWeights, functions: DecodingFunctions
    ) -> None:
        self._graph = model.graph
        self._config = model.config
        self._weights = weights
        self._functions = functions
        self._piece_tokens = device_profile().prompt_piece_tokens

    def read_some(self, prompts: Sequence[Int32Array]) -> Generator[None, None, list[Cache | None]]:
        """Read the first of the prompts and those after it that fit into the same call.

        Args:
            prompts: at least one, each [T] with T >= 1.

        Yields:
            None after every piece of compute.

        Returns:
            For each prompt read, in their order, a cache of one row and one part. None for a prompt
            of one token, if a row may start with whatever its slots hold.
        """
        lengths = [len(prompt) - 1 for prompt in prompts]
        dtype = head_kernel(self._config, self._weights.parameters).dtype
        if lengths[0] == 0:
            # A row overwrites its slots of attention before it reads them. The state of a recurrent
            # layer is read first, so it must be empty.
            is_needed = self._config.is_recurrent
            return [init_cache(self._config, 1, cache_slots(1), dtype) if is_needed else None]
        width = min(length_bucket(lengths[0]), self._piece_tokens)
        alike = 0
        while alike < len(lengths) and 0 < lengths[alike] <= self._piece_tokens:
            if length_bucket(lengths[alike]) != width:
                break
            alike += 1
        largest = max(1, min(alike, self._piece_tokens // width))
        size = next(size for size in _BATCH_SIZES if size <= largest)

        piece_count = -(-lengths[0] // width)
        token_ids = np.zeros((size, piece_count * width), np.int32)
        for row, prompt in enumerate(prompts[:size]):
            token_ids[row, : len(prompt) - 1] = prompt[:-1]
        row_lengths = np.asarray(lengths[:size], np.int32)
        parameters, adapter = self._weights.parameters, self._weights.adapter
        cache = init_cache(self._config, size, cache_slots(lengths[0]), dtype)
        for start in range(0, token_ids.shape[1], width):
            piece = token_ids[:, start : start + width]
            cache = self._functions.read_prompts(
                self._graph, parameters, adapter, piece, np.int32(start), row_lengths, cache
            )
            _wait(cache)  # the piece is over when its compute is
            yield
        if size == 1:
            return [cache]
        return [self._functions.prompt_row(cache, np.int32(row)) for row in range(size)]


def _wait(cache: Cache) -> None:
    leaf: jax.Array = jax.tree.leaves(cache)[0]
    leaf.block_until_ready()
