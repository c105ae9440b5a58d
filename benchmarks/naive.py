"""Baseline (a): the straightforward JAX path on the same weights.

Pad to the longest, logits of every position, `lax.top_k`, `take_along_axis`, `jax.grad`; compiled,
one shape for the whole workload, no rematerialisation. Sub-batches of consecutive sequences, as
large as memory reasonably allows: when scoring 8 sequences, or fewer where their logits would be
larger than 2 GiB; when training 1024 padded tokens, for all activations are kept.

Letters: as in `naive_model`; K support size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.naive_model import Weights, logits
from benchmarks.workloads import ScoringLoad, TrainingLoad
from distill.arrays import FloatArray, Int32Array
from distill.engine.buckets import power_of_two_at_most
from distill.network.config import ModelConfig

SCORING_SEQUENCES = 8
LOGIT_BYTES = 2 << 30
TRAINING_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class ScoredPrompt:
    """The wanted rows of one prompt."""

    token_ids: Int32Array
    """[P, K]."""

    log_probs: FloatArray
    """[P, K]."""

    prompt_log_probs: FloatArray
    """[P], of the prompt's own tokens."""

    tail_log_probs: FloatArray
    """[P], of everything else."""


class NaiveScorer:
    """Scores prompts padded to the longest of them."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._config = config
        self._weights = weights
        self._score = jax.jit(partial(score_batch, config), static_argnames="top_k")

    def score(self, load: ScoringLoad, *, first_only: bool = False) -> list[ScoredPrompt]:
        """All prompts, in host memory; or those of the first sub-batch, in the same shape."""
        longest = max(len(prompt) for prompt in load.prompts)
        size = scoring_sequences(load, self._config.vocab_size)
        results = []
        for start in range(0, size if first_only else len(load.prompts), size):
            prompts = load.prompts[start : start + size]
            outputs = self._score(self._weights, padded(prompts, size, longest), top_k=load.top_k)
            arrays = [np.asarray(output) for output in outputs]
            for index, prompt in enumerate(prompts):
                # Position t has the distribution over token t + 1.
                wanted = slice(load.score_from[start + index] - 1, len(prompt) - 1)
                token_ids, log_probs, own, tail = (array[index, wanted] for array in arrays)
                results.append(
                    ScoredPrompt(
                        token_ids=token_ids,
                        log_probs=log_probs,
                        prompt_log_probs=own,
                        tail_log_probs=tail,
                    )
                )
        return results


class NaiveTrainer:
    """Gradients of sequences padded to the longest of them."""

    def __init__(self, config: ModelConfig, weights: Weights, lora_scale: float | None) -> None:
        """Args:
        config: of the model.
        weights: of the model.
        lora_scale: alpha / rank; None: all weights are trained.
        """
        self._config = config
        self._weights = weights
        loss = partial(batch_loss, config, lora_scale)
        self._gradient = jax.jit(jax.value_and_grad(loss), static_argnames="is_hard")
        self._add = jax.jit(partial(jax.tree.map, jnp.add))

    def forward_backward(
        self, trainable: Any, load: TrainingLoad, *, first_only: bool = False
    ) -> tuple[float, Any]:
        """The summed loss and its gradient, waited for.

        Args:
            trainable: an adapter, or the weights in float32.
            load: what to train on.
            first_only: only the first sub-batch of it, in the same shape.
        """
        loss, total = 0.0, None
        for batch in islice(training_batches(load), 1 if first_only else None):
            batch_value, gradient = self._gradient(
                trainable, self._weights, batch, is_hard=load.is_hard
            )
            loss += float(batch_value)
            total = gradient if total is None else self._add(total, gradient)
        return loss, jax.tree.map(lambda leaf: leaf.block_until_ready(), total)


def scoring_sequences(load: ScoringLoad, vocab_size: int) -> int:
    """Sequences of one call."""
    longest = max(len(prompt) for prompt in load.prompts)
    fitting = max(1, LOGIT_BYTES // (4 * longest * vocab_size))
    return min(SCORING_SEQUENCES, len(load.prompts), power_of_two_at_most(fitting))


def padded(rows: Sequence[NDArray[Any]], size: int, longest: int) -> NDArray[Any]:
    """[T, ...] arrays as one [size, longest, ...], zeros after them."""
    result = np.zeros((size, longest, *rows[0].shape[1:]), rows[0].dtype)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return result


def training_sequences(load: TrainingLoad) -> int:
    """Sequences of one call."""
    longest = max(len(sequence) for sequence in load.sequences)
    return min(len(load.sequences), max(1, TRAINING_TOKENS // longest))


def training_batches(load: TrainingLoad) -> Iterator[dict[str, NDArray[Any]]]:
    """Consecutive sequences, padded to the longest of all; the arrays of `batch_loss`."""
    longest = max(len(sequence) for sequence in load.sequences)
    size = training_sequences(load)
    for start in range(0, len(load.sequences), size):
        here = slice(start, start + size)
        sequences = load.sequences[here]
        weights = [np.ones(len(sequence), np.float32) for sequence in sequences]
        yield {
            "token_ids": padded(sequences, size, longest),
            "target_ids": padded(load.target_ids[here], size, longest),
            "target_values": padded(load.target_values[here], size, longest),
            "tail_log_probs": padded(load.tail_log_probs[here], size, longest),
            "row_weights": padded(weights, size, longest),
        }


def score_batch(
    config: ModelConfig, weights: Weights, token_ids: jax.Array, *, top_k: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """ids and log-probs [B, T, K], the own token's and the tail's log-probs [B, T] of [B, T] ids.

    Position t is the distribution over token t + 1; that of the last position has no own token.
    """
    dense = logits(config, weights, token_ids)
    log_normalizer = jax.nn.logsumexp(dense, axis=-1)
    # As one matrix: XLA's CPU backend has a quick top_k for that alone, and sorts otherwise.
    values, ids = jax.lax.top_k(dense.reshape(-1, config.vocab_size), top_k)
    ids = ids.reshape(*token_ids.shape, top_k)
    log_probs = values.reshape(ids.shape) - log_normalizer[..., None]
    following = jnp.roll(token_ids, -1, axis=1)[..., None]
    own = jnp.take_along_axis(dense, following, axis=-1)[..., 0] - log_normalizer
    return ids, log_probs, own, tail_of(log_probs)


def tail_of(log_probs: jax.Array) -> jax.Array:
    """[..., K] log-probs of a support to those [...] of everything outside."""
    support = jax.nn.logsumexp(log_probs, axis=-1)
    return jnp.log(-jnp.expm1(jnp.minimum(support, -1e-7)))


def batch_loss(
    config: ModelConfig,
    lora_scale: float | None,
    trainable: Any,
    base: Weights,
    batch: Mapping[str, jax.Array],
    *,
    is_hard: bool,
) -> jax.Array:
    """The sum of the row losses of a padded batch."""
    if lora_scale is None:
        # The optimizer's copy is float32, whatever is computed in.
        weights = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), trainable, base)
        dense = logits(config, weights, batch["token_ids"])
    else:
        dense = logits(config, base, batch["token_ids"], trainable, lora_scale)
    log_probs = jnp.take_along_axis(
        jax.nn.log_softmax(dense, axis=-1), batch["target_ids"], axis=-1
    )
    losses = row_losses(log_probs, batch["target_values"], batch["tail_log_probs"], is_hard=is_hard)
    return (losses * batch["row_weights"]).sum()


def row_losses(
    log_probs: jax.Array, target_values: jax.Array, tail_log_probs: jax.Array, *, is_hard: bool
) -> jax.Array:
    """The loss [...] of rows with K targets [..., K]: cross entropy, or the KL with the tail."""
    if is_hard:
        return -(target_values * log_probs).sum(-1)
    return kl_with_tail(log_probs, tail_of(log_probs), target_values, tail_log_probs)


def kl_with_tail(
    log_q: jax.Array, log_q_tail: jax.Array, log_p: jax.Array, log_p_tail: jax.Array
) -> jax.Array:
    """The KL over K + 1 outcomes: [..., K] and [...] to [...]."""
    support = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return support + jnp.exp(log_p_tail) * (log_p_tail - log_q_tail)
