"""Everything that training changes, as one immutable value and as named arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
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
    """Sum since the last step; None while no row of it had a weight."""

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


COUNTERS = tuple(each.name for each in fields(RunState) if each.type is int)
"""The plain numbers of a RunState."""


def state_tree(state: RunState) -> dict[str, Any]:
    """The arrays of a state as one tree."""
    return {
        "trainable": state.trainable,
        "optimizer_state": state.optimizer_state,
        "gradient_sum": state.gradient_sum,
    }


def named_arrays(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths, as arrays on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def from_named_arrays(like: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A tree of the structure of `like`, with the arrays named by their paths as its leaves."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    restored: dict[str, Any] = jax.tree_util.tree_unflatten(
        structure, [jax.numpy.asarray(arrays[_name(path)]) for path, _ in paths]
    )
    return restored


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
