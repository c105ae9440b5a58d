"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685), in the layout of the layer scan."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from distill.errors import InvalidFieldError
from distill.network.config import ModelConfig
from distill.network.functional import HEAD_TARGET, Adapter
from distill.network.projections import layers_with, projection_shapes

ADAPTER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections that can have an adapter in a layer of attention and a dense MLP, in order."""

_MLP_TARGETS = ("gate_proj", "up_proj", "down_proj")

DELTA_NET_TARGETS = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")
"""The same of a gated delta-net layer."""

ALL_TARGETS = (*ADAPTER_TARGETS, HEAD_TARGET, *DELTA_NET_TARGETS)
"""All targets of any family; `model_targets` says which a model has. New ones are added at the end
alone: the initial values of a target depend on its place here."""


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """An adapter without its weights."""

    rank: int
    """r, at least 1."""

    alpha: float
    """The update is scaled by alpha / rank."""

    target_modules: tuple[str, ...]
    """Names out of the model's `model_targets`."""

    seed: int
    """Of the initial `a` matrices."""

    @property
    def scale(self) -> float:
        """The factor alpha / rank of the update."""
        return self.alpha / self.rank


def init_adapter(config: ModelConfig, spec: LoraSpec, dtype: DTypeLike) -> Adapter:
    """A fresh adapter that changes nothing yet: a Kaiming uniform as in PEFT, b zero.

    The values of a target's `a` depend on the seed and the target alone, not on which other targets
    have an adapter.

    Raises:
        InvalidFieldError: rank below 1, or no or an unknown target.
    """
    _check(config, spec)
    seed_key = jax.random.key(spec.seed)
    adapter = {}
    for target in spec.target_modules:
        in_features, out_features = target_shape(config, target)
        stack = () if target == HEAD_TARGET else (len(layers_with(config, target)),)
        key = jax.random.fold_in(seed_key, ALL_TARGETS.index(target))
        # Kaiming uniform with a = sqrt(5), torch's default for Linear, comes to this bound.
        bound = 1 / math.sqrt(in_features)
        shape = (*stack, in_features, spec.rank)
        adapter[target] = {
            "a": jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound),
            "b": jnp.zeros((*stack, spec.rank, out_features), dtype),
        }
    return adapter


def layer_targets(config: ModelConfig) -> tuple[str, ...]:
    """The projections of a model's layers that can have an adapter: the default."""
    shapes = projection_shapes(config)
    frozen = _MLP_TARGETS if config.experts is not None else ()
    return tuple(target for target in ALL_TARGETS if target in shapes and target not in frozen)


def model_targets(config: ModelConfig) -> tuple[str, ...]:
    """All targets of a model: its layers' and the head."""
    return (*layer_targets(config), HEAD_TARGET)


def check_targets(config: ModelConfig, targets: Iterable[str], field: str) -> None:
    """Refuse targets that the model does not have.

    Raises:
        InvalidFieldError: a target is unknown. Names the field and the targets that are known.
    """
    known = model_targets(config)
    for target in targets:
        if target not in known:
            reason = ""
            if config.experts is not None and target in _MLP_TARGETS:
                reason = (
                    ": the experts of a sparse model have no adapters, and PEFT would take the "
                    "name for theirs too; train them with all weights"
                )
            raise InvalidFieldError(
                field, f"must be among {', '.join(known)}, got {target!r}{reason}"
            )


def target_shape(config: ModelConfig, target: str) -> tuple[int, int]:
    """(in, out) of the projection, or the head, that a target names."""
    if target == HEAD_TARGET:
        return config.hidden_size, config.vocab_size
    return projection_shapes(config)[target]


def scale_adapter(adapter: Adapter, factor: float | jax.Array) -> Adapter:
    """The adapter with `factor` (alpha / rank) folded into b, as the forward pass expects it."""
    return {
        target: {"a": pair["a"], "b": pair["b"] * jnp.asarray(factor, pair["b"].dtype)}
        for target, pair in adapter.items()
    }


def _check(config: ModelConfig, spec: LoraSpec) -> None:
    if spec.rank < 1:
        raise InvalidFieldError("lora.rank", f"must be at least 1, got {spec.rank}")
    if not spec.target_modules:
        raise InvalidFieldError("lora.target_modules", "must name at least one projection")
    check_targets(config, spec.target_modules, "lora.target_modules")
    if len(set(spec.target_modules)) != len(spec.target_modules):
        raise InvalidFieldError("lora.target_modules", "must not name a projection twice")
