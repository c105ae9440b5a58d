"""What an objective is given at N rows of support size K, and what it answers.

Letters: N rows, K support size, p the teacher, q the student, both normalised over the full
vocabulary after temperature.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class StudentRows(NamedTuple):
    """The student at N rows."""

    log_probs: jax.Array
    """log q on the support, [N, K]."""

    tail_log_probs: jax.Array
    """log of the student's probability outside the support, [N]."""


class TargetRows(NamedTuple):
    """The targets at N rows."""

    values: jax.Array
    """Weights, advantages or the teacher's log p, as the objective needs, [N, K]."""

    tail_log_probs: jax.Array
    """log of the teacher's probability outside the support, [N]. Used with log p only."""

    old_log_probs: jax.Array
    """log of the sampling policy's probability of the named tokens, [N, K]. Used with advantages
    only; zeros otherwise."""


class ObjectiveParameters(NamedTuple):
    """Settings of a batch, float32 scalars: arguments of compiled code and not constants of it."""

    beta: jax.Array
    """Of `jsd`, in [0, 1]."""

    clip_low: jax.Array
    """Lower bound on the ratio r, of `ppo` and `cispo`."""

    clip_high: jax.Array
    """Upper bound on the ratio r, of `ppo` and `cispo`."""


RowLoss = Callable[[StudentRows, TargetRows, ObjectiveParameters], jax.Array]
"""The losses of N rows: [N]."""


def weighted(weight: jax.Array, value: jax.Array) -> jax.Array:
    """weight * value, exactly 0 in value and gradient where the weight is 0, even at -inf.

    >>> print(weighted(jnp.array([0.0, 2.0]), jnp.array([-jnp.inf, 3.0])))
    [0. 6.]
    """
    return weight * jnp.where(weight == 0.0, 0.0, value)
