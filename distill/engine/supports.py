"""The kinds of support that a scoring job can ask for, and what the heads of two of them need.

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
    """The caller names the support of each row."""

    token_ids: Int32Array
    """[R, K], distinct within a row."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The support is the most probable tokens (the exact head) and draws from all others."""

    exact_count: int
    """Size of the exact head, in [0, K)."""

    seed: int
    """Of the draws."""


Support: TypeAlias = Candidates | Draws | None
"""None: the K most probable tokens."""


def draw_key(seed: int, token_ids: Int32Array) -> np.ndarray:
    """The random key of a prompt, [2] uint32. It depends on the seed and the prompt's tokens alone,
    so that the draws do not depend on what is scored beside it."""
    content = seed.to_bytes(8, "little", signed=True) + token_ids.astype("<i4").tobytes()
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), "<u4")


def candidate_block(parts: Iterable[Int32Array], row_count: int, width: int) -> Int32Array:
    """The candidates of one call, [row_count, width], padded with token 0.

    Args:
        parts: candidates of consecutive rows, [rows, K] each, one part after the other.
        row_count: P, padding included.
        width: K as it is compiled.
    """
    block = np.zeros((row_count, width), np.int32)
    start = 0
    for rows in parts:
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
