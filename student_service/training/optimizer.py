"""AdamW through optax, with the settings of each step given as arrays. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Trainable: TypeAlias = Mapping[str, Any]
"""What a run trains, float32: an adapter, or all parameters."""


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """AdamW (https://arxiv.org/abs/1711.05101) for one step."""

    learning_rate: float
    """At least 0."""

    beta1: float = 0.9
    """Decay of the first moment."""

    beta2: float = 0.95
    """Decay of the second moment."""

    epsilon: float = 1e-8
    """Added to the denominator."""

    weight_decay: float = 0.0
    """Decoupled: the parameters shrink by learning_rate * weight_decay."""

    max_gradient_norm: float | None = None
    """Scale the gradient down to this global norm; None: never."""


class StepOutcome(NamedTuple):
    """What a step made."""

    trainable: Trainable
    optimizer_state: optax.OptState
    gradient_norm: jax.Array
    update_norm: jax.Array


class Hyperparameters(NamedTuple):
    """AdamW's settings as arrays: a new learning rate must not compile a new program."""

    learning_rate: jax.Array
    beta1: jax.Array
    beta2: jax.Array
    epsilon: jax.Array
    weight_decay: jax.Array
    max_gradient_norm: jax.Array


def as_arrays(settings: AdamWSettings) -> Hyperparameters:
    """The settings as arguments of a compiled step."""
    clip = np.inf if settings.max_gradient_norm is None else settings.max_gradient_norm
    values = (
        settings.learning_rate,
        settings.beta1,
        settings.beta2,
        settings.epsilon,
        settings.weight_decay,
        clip,
    )
    return Hyperparameters(*(jnp.float32(value) for value in values))


def initial_moments(trainable: Trainable) -> optax.OptState:
    """Zero moments."""
    return _adamw(AdamWSettings(learning_rate=0.0)).init(trainable)


def _adamw(settings: AdamWSettings | Hyperparameters) -> optax.GradientTransformation:
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
    hyperparameters: Hyperparameters,
) -> StepOutcome:
    """One step on gradient_sum / normalizer; pure, to be compiled by the caller."""
    gradients = jax.tree.map(lambda leaf: leaf / normalizer, gradient_sum)
    norm = optax.tree.norm(gradients)
    factor = jnp.minimum(1.0, hyperparameters.max_gradient_norm / norm)
    clipped = jax.tree.map(lambda leaf: leaf * factor, gradients)
    updates, new_state = _adamw(hyperparameters).update(clipped, optimizer_state, trainable)
    return StepOutcome(
        trainable=optax.apply_updates(trainable, updates),
        optimizer_state=new_state,
        gradient_norm=norm,
        update_norm=optax.tree.norm(updates),
    )
