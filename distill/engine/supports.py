"""What a scoring job says of its support, and the compiled head of each kind of it.

Letters: P rows of a call of the head, R wanted rows of a prompt, K support size.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np

from distill.arrays import Int32Array
from distill.ops.logits import Head
from distill.ops.sampled_support import SampledRows, sampled_rows


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The support is named, row by row."""

    token_ids: Int32Array
    """[R, K], distinct within a row."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The support is an exact head and draws from what is outside it."""

    exact_count: int
    """Size of the head, in [0, K)."""

    seed: int
    """Of the draws."""


Support: TypeAlias = Candidates | Draws | None
"""None: the K most probable tokens."""


def draw_key(seed: int, token_ids: Int32Array) -> np.ndarray:
    """The random key of a prompt, [2] uint32: of its seed and tokens, and of nothing else."""
    content = seed.to_bytes(8, "little", signed=True) + token_ids.astype("<i4").tobytes()
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), "<u4")


def candidate_block(
    parts: Iterable[tuple[Candidates, int, int]], row_count: int, width: int
) -> Int32Array:
    """The candidates of one call, [row_count, width], padded with token 0.

    Args:
        parts: the candidates of a prompt, and the first and one past the last of their rows.
        row_count: P, padding included.
        width: K as it is compiled.
    """
    block = np.zeros((row_count, width), np.int32)
    start = 0
    for candidates, first, last in parts:
        rows = candidates.token_ids[first:last]
        block[start : start + len(rows), : rows.shape[1]] = rows
        start += len(rows)
    return block


def sampled_head(
    hidden: jax.Array,
    head: Head,
    prompt_token_ids: jax.Array,
    temperatures: jax.Array,
    support_sizes: jax.Array,
    exact_counts: jax.Array,
    key_data: jax.Array,
    row_numbers: jax.Array,
    *,
    slot_count: int,
    head_slot_count: int,
) -> SampledRows:
    """`sampled_rows` with the keys of its rows: that of the prompt folded with the row's number.

    Args:
        key_data: [P, 2] uint32, the `draw_key` of each row's prompt.
        row_numbers: [P] int32, in prompt coordinates.

    The others are those of `sampled_rows`.
    """
    prompt_keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    return sampled_rows(
        hidden,
        head,
        prompt_token_ids,
        temperatures,
        support_sizes,
        exact_counts,
        jax.vmap(jax.random.fold_in)(prompt_keys, row_numbers),
        slot_count=slot_count,
        head_slot_count=head_slot_count,
    )
