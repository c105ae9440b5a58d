"""AdamW through optax. The settings of a step are arrays. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Trainable: TypeAlias = Mapping[str, Any]
"""What a run trains, float32: an adapter, or all parameters."""


class Interval(NamedTuple):
    """The values that a setting may have."""

    description: str
    """For the error: "must be ..."."""

    holds: Callable[[float], bool]
    """Whether a value lies in it; False for NaN."""


AT_LEAST_0 = Interval("finite and at least 0", lambda value: 0 <= value < np.inf)
ABOVE_0 = Interval("finite and greater than 0", lambda value: 0 < value < np.inf)
BELOW_1 = Interval("in [0, 1)", lambda value: 0 <= value < 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """AdamW (https://arxiv.org/abs/1711.05101) for one step. The fields are those of the message
    `AdamW`, each with the interval in which the edge accepts it."""

    learning_rate: float = field(metadata={"interval": AT_LEAST_0})
    """At least 0."""

    beta1: float = field(default=0.9, metadata={"interval": BELOW_1})
    """Decay of the first moment."""

    beta2: float = field(default=0.95, metadata={"interval": BELOW_1})
    """Decay of the second moment."""

    epsilon: float = field(default=1e-8, metadata={"interval": ABOVE_0})
    """Added to the denominator."""

    weight_decay: float = field(default=0.0, metadata={"interval": AT_LEAST_0})
    """Decoupled: the parameters shrink by learning_rate * weight_decay."""

    max_gradient_norm: float | None = field(default=None, metadata={"interval": ABOVE_0})
    """Scale the gradient down to this global norm; None: never."""


class StepOutcome(NamedTuple):
    """The new state after a step, and its norms."""

    trainable: Trainable
    optimizer_state: optax.OptState
    norms: dict[str, jax.Array]
    """Global norms, scalars: "gradient_norm" of the normalised gradient before clipping, and
    "update_norm" of the change of the parameters."""


def as_arrays(settings: AdamWSettings) -> AdamWSettings:
    """The settings as arguments of a compiled step: float32 scalars, with an infinite norm where
    none is set. Another learning rate compiles no other program."""
    clip = np.inf if settings.max_gradient_norm is None else settings.max_gradient_norm
    arrays: AdamWSettings = jax.tree.map(jnp.float32, replace(settings, max_gradient_norm=clip))
    return arrays


def initial_moments(trainable: Trainable) -> optax.OptState:
    """Zero moments."""
    return _adamw(as_arrays(AdamWSettings(learning_rate=0.0))).init(trainable)


def _adamw(settings: AdamWSettings) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=settings.epsilon),
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_learning_rate(settings.learning_rate),
    )


def adamw_step(
    trainable: Trainable,
    optimizer_state: optax.OptState,
    gradient_sum: Trainable,
    normalizer: jax.Array,
    settings: AdamWSettings,
) -> StepOutcome:
    """One step on gradient_sum / normalizer. The caller compiles it; `settings` are `as_arrays`."""
    gradients = jax.tree.map(lambda leaf: leaf / normalizer, gradient_sum)
    norm = optax.tree.norm(gradients)
    factor = jnp.minimum(1.0, settings.max_gradient_norm / norm)
    clipped = jax.tree.map(lambda leaf: leaf * factor, gradients)
    updates, new_state = _adamw(settings).update(clipped, optimizer_state, trainable)
    return StepOutcome(
        trainable=optax.apply_updates(trainable, updates),
        optimizer_state=new_state,
        norms={"gradient_norm": norm, "update_norm": optax.tree.norm(updates)},
    )
