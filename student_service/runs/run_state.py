"""Everything that training changes, as one immutable value and as named arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from student_service.training.optimizer import Trainable


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that training changes. Immutable."""

    trainable: Trainable
    """Float32 parameters."""

    optimizer_state: optax.OptState
    """Float32 moments."""

    gradient_sum: Trainable | None = None
    """Sum since the last step; None when nothing has a weight yet."""

    step: int = 0
    """Optimizer steps."""

    accumulated_batches: int = 0
    """Batches in the gradient sum."""

    accumulated_rows: int = 0
    """Weighted target rows in it."""

    accumulated_examples: int = 0
    """Examples in it."""

    weights_version: str
    """Changes whenever `trainable` does."""


COUNTERS = ("step", "accumulated_batches", "accumulated_rows", "accumulated_examples")
"""The plain numbers of a RunState."""


def state_tree(state: RunState) -> dict[str, Any]:
    """The arrays of a state as one tree."""
    return {
        "trainable": state.trainable,
        "optimizer_state": state.optimizer_state,
        "gradient_sum": state.gradient_sum,
    }


def named_arrays(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of a tree by their path, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in leaves
    }


def from_named_arrays(like: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tree of the structure of `like` with the leaves of that name."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    restored: dict[str, Any] = jax.tree_util.tree_unflatten(
        structure, [jax.numpy.asarray(arrays[name]) for name in names]
    )
    return restored
