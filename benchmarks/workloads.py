"""What is computed: the same token ids and targets for every side, from fixed seeds.

Letters: T tokens of a sequence, N target rows of a sequence, K support size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.arrays import FloatArray, Int32Array

SEED = 20


@dataclass(frozen=True, kw_only=True)
class ScoringLoad:
    """Prompts and the rows of them that are wanted."""

    prompts: tuple[Int32Array, ...]
    """Each [T]."""

    score_from: tuple[int, ...]
    """First wanted row of each; row i is the distribution over token i."""

    top_k: int
    """K."""

    @property
    def token_count(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def row_count(self) -> int:
        """Wanted rows of all prompts."""
        pairs = zip(self.prompts, self.score_from, strict=True)
        return sum(len(prompt) - first for prompt, first in pairs)


@dataclass(frozen=True, kw_only=True)
class TrainingLoad:
    """Sequences with a target at every position."""

    sequences: tuple[Int32Array, ...]
    """Each [T]."""

    target_ids: tuple[Int32Array, ...]
    """Each [T, K]."""

    target_values: tuple[FloatArray, ...]
    """Each [T, K]: the teacher's log-probs for soft targets, ones for hard ones (K = 1)."""

    tail_log_probs: tuple[FloatArray, ...]
    """Each [T], of everything outside the support; zeros for hard targets."""

    is_hard: bool
    """Cross entropy with one token per row; otherwise the KL over the support and the tail."""

    @property
    def token_count(self) -> int:
        """Tokens of all sequences; as many target rows."""
        return sum(len(sequence) for sequence in self.sequences)


def ragged_lengths(count: int, *, shortest: int, longest: int) -> tuple[int, ...]:
    """Log-uniform lengths: most prompts are short, a few are long. The longest is among them.

    One draw from each of `count` equal parts of the range, in random order: every count and seed
    gives the same distribution, not only the average over many.
    """
    generator = np.random.default_rng(SEED)
    steps = (np.arange(count) + generator.uniform(size=count)) / count
    lengths = np.rint(shortest * (longest / shortest) ** steps).astype(int)
    lengths[-1] = longest
    return tuple(int(length) for length in generator.permutation(lengths))


def random_tokens(lengths: Sequence[int], vocab_size: int, seed: int) -> tuple[Int32Array, ...]:
    """Uniform token ids: the time of a matrix product does not depend on its values."""
    generator = np.random.default_rng(SEED + seed)
    return tuple(generator.integers(0, vocab_size, length, dtype=np.int32) for length in lengths)


def scoring_load(
    lengths: Sequence[int], vocab_size: int, *, top_k: int, wanted_share: float = 1.0
) -> ScoringLoad:
    """Random prompts of which the last `wanted_share` is scored."""
    return ScoringLoad(
        prompts=random_tokens(lengths, vocab_size, seed=0),
        score_from=tuple(max(1, round(length * (1 - wanted_share))) for length in lengths),
        top_k=top_k,
    )


def shared_prefix_load(
    *, context_tokens: int, completion_tokens: int, completions: int, vocab_size: int, top_k: int
) -> ScoringLoad:
    """Several completions of one context, of which the completions are scored."""
    (context,) = random_tokens([context_tokens], vocab_size, seed=1)
    ends = random_tokens([completion_tokens] * completions, vocab_size, seed=2)
    return ScoringLoad(
        prompts=tuple(np.concatenate([context, end]) for end in ends),
        score_from=(context_tokens,) * completions,
        top_k=top_k,
    )


def training_load(
    lengths: Sequence[int], vocab_size: int, *, top_k: int, is_hard: bool
) -> TrainingLoad:
    """Random sequences, each position with a random distribution over random tokens."""
    generator = np.random.default_rng(SEED + 3)
    sequences = random_tokens(lengths, vocab_size, seed=4)
    ids, values, tails = [], [], []
    for length in lengths:
        if is_hard:
            ids.append(generator.integers(0, vocab_size, (length, 1), dtype=np.int32))
            values.append(np.ones((length, 1), np.float32))
            tails.append(np.zeros(length, np.float32))
            continue
        logits = generator.normal(size=(length, top_k + 1))
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        support = [generator.choice(vocab_size, top_k, replace=False) for _ in range(length)]
        ids.append(np.asarray(support, np.int32))
        values.append(-np.sort(-log_probs[:, :top_k], axis=1).astype(np.float32))
        tails.append(log_probs[:, top_k].astype(np.float32))
    return TrainingLoad(
        sequences=sequences,
        target_ids=tuple(ids),
        target_values=tuple(values),
        tail_log_probs=tuple(tails),
        is_hard=is_hard,
    )
