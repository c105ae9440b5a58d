"""The sparse MLP of a layer: a router, experts, and a shared expert where a model has one.

The experts and the router have no adapters: LoRA leaves them frozen, full training trains them.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.network.config import ModelConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.layer_kinds import LayerKind
from distill.network.layers import LayerAdapter, Linear
from distill.ops.routed_mlp import ExpertKernels, route, routed_mlp


class StackedLinear(nnx.Module):
    """One projection of all experts: their kernels [E, in, out]."""

    def __init__(
        self,
        expert_count: int,
        in_features: int,
        out_features: int,
        dtype: DTypeLike,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (expert_count, in_features, out_features)
        scale = 1 / math.sqrt(in_features)
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape, dtype))


class Experts(nnx.Module):
    """All experts of a layer."""

    def __init__(
        self, hidden_size: int, config: ExpertsConfig, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        count, width = config.expert_count, config.expert_size
        self.gate_proj = StackedLinear(count, hidden_size, width, dtype, rngs=rngs)
        self.up_proj = StackedLinear(count, hidden_size, width, dtype, rngs=rngs)
        self.down_proj = StackedLinear(count, width, hidden_size, dtype, rngs=rngs)

    @property
    def kernels(self) -> ExpertKernels:
        """The three kernels, as `routed_mlp` takes them."""
        return ExpertKernels(
            self.gate_proj.kernel[...], self.up_proj.kernel[...], self.down_proj.kernel[...]
        )


class SharedExpert(nnx.Module):
    """An expert that all tokens visit: sigmoid(gate(x)) · down(silu(gate_proj(x)) · up_proj(x))."""

    def __init__(
        self, hidden_size: int, expert_size: int, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        self.gate_proj = Linear(hidden_size, expert_size, dtype, rngs=rngs)
        self.up_proj = Linear(hidden_size, expert_size, dtype, rngs=rngs)
        self.down_proj = Linear(expert_size, hidden_size, dtype, rngs=rngs)
        self.gate = Linear(hidden_size, 1, dtype, rngs=rngs)

    def __call__(self, rows: jax.Array) -> jax.Array:
        """Map [N, D] to [N, D] float32."""
        gate = self.gate_proj(rows).astype(jnp.float32)
        gated = jax.nn.silu(gate) * self.up_proj(rows).astype(jnp.float32)
        output = self.down_proj(gated.astype(rows.dtype)).astype(jnp.float32)
        return jax.nn.sigmoid(self.gate(rows).astype(jnp.float32)) * output


class SparseMLP(nnx.Module):
    """The sum over the experts that a token chose, plus the result of the shared expert.

    The router is float32 whatever the compute dtype is: with bfloat16 logits, tokens near a tie
    would visit other experts than in float32.
    """

    def __init__(
        self, config: ModelConfig, _kind: LayerKind, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        experts, hidden_size = config.experts, config.hidden_size
        assert experts is not None
        self.config = experts
        self.router = Linear(hidden_size, experts.expert_count, jnp.float32, rngs=rngs)
        self.experts = Experts(hidden_size, experts, dtype, rngs=rngs)
        if experts.shared_expert_size is not None:
            self.shared_expert = SharedExpert(
                hidden_size, experts.shared_expert_size, dtype, rngs=rngs
            )

    def __call__(self, hidden: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """Map [B, T, D] to [B, T, D]. The adapter has nothing for this MLP."""
        del adapter
        rows = hidden.reshape(-1, hidden.shape[-1])
        routing = route(
            self.router(rows.astype(jnp.float32)),
            self.config.choice_count,
            is_normalized=self.config.is_normalized,
        )
        mixed = routed_mlp(rows, routing, self.experts.kernels)
        if self.config.shared_expert_size is not None:
            mixed = (mixed.astype(jnp.float32) + self.shared_expert(rows)).astype(hidden.dtype)
        return mixed.reshape(hidden.shape)
