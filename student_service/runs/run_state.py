"""Everything that training changes, as one immutable value and as named arrays.

Files name the arrays "parameters/<path>", "first_moments/<path>", "second_moments/<path>",
"gradient_sum/<path>" and "adam_step_count": names of this project, which stay when the optimizer's
library names its own otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill.errors import CorruptDataError
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


def named_arrays(state: RunState) -> dict[str, np.ndarray]:
    """The arrays of a state on the host, by the names that files have for them."""
    moments = _adam_state(state)
    named = {
        **_named("parameters", state.trainable),
        **_named("first_moments", moments.mu),
        **_named("second_moments", moments.nu),
        **_named("gradient_sum", {} if state.gradient_sum is None else state.gradient_sum),
        "adam_step_count": moments.count,
    }
    return {name: np.asarray(array) for name, array in named.items()}


def from_named_arrays(
    like: RunState, arrays: Mapping[str, np.ndarray], *, has_gradient: bool
) -> dict[str, Any]:
    """The inverse of `named_arrays`: the fields of a RunState that are arrays.

    Args:
        like: a state of the same run, whose arrays have the shapes and types that are expected.
        arrays: by name.
        has_gradient: whether a gradient sum is among them.

    Raises:
        CorruptDataError: an array is missing, unknown, or of another shape or type.
    """
    moments = _adam_state(like)
    expected = {
        **_named("parameters", like.trainable),
        **_named("first_moments", moments.mu),
        **_named("second_moments", moments.nu),
        **_named("gradient_sum", like.trainable if has_gradient else {}),
        "adam_step_count": moments.count,
    }
    _check_arrays(expected, arrays)
    adam = moments._replace(
        count=jnp.asarray(arrays["adam_step_count"]),
        mu=_tree("first_moments", moments.mu, arrays),
        nu=_tree("second_moments", moments.nu, arrays),
    )
    return {
        "trainable": _tree("parameters", like.trainable, arrays),
        "optimizer_state": (adam, *like.optimizer_state[1:]),
        "gradient_sum": _tree("gradient_sum", like.trainable, arrays) if has_gradient else None,
    }


def _adam_state(state: RunState) -> optax.ScaleByAdamState:
    """The one part of the optimizer's state that holds arrays."""
    adam, *others = state.optimizer_state
    if not isinstance(adam, optax.ScaleByAdamState) or jax.tree.leaves(others):
        raise TypeError("the optimizer keeps arrays that have no name in files")
    return adam


def _named(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of nested mappings by their paths: "parameters/q_proj/a"."""
    named: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}"
        named |= _named(path, value) if isinstance(value, Mapping) else {path: value}
    return named


def _tree(prefix: str, like: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `_named`."""
    return {
        key: _tree(f"{prefix}/{key}", value, arrays)
        if isinstance(value, Mapping)
        else jnp.asarray(arrays[f"{prefix}/{key}"])
        for key, value in like.items()
    }


def _check_arrays(expected: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        wanted, got = _described(expected.get(name)), _described(found.get(name))
        if wanted != got:
            raise CorruptDataError(
                f"the checkpoint's array {name!r}: expected {wanted}, found {got}; it was damaged, "
                "or saved by another version of the service, which can load it"
            )


def _described(array: Any) -> str:
    return "none" if array is None else f"{array.dtype} {list(array.shape)}"
