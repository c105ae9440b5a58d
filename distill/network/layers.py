"""The parts that the decoder families share.

Letters: B rows, T positions in a row, S key slots, H query heads, D hidden size.

A kernel is [in, out] and is multiplied from the left by the activations, so that the product of the
forward pass, and both of the backward pass, are plain row-major matrix products.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distill.kernels.bits import values_as
from distill.kernels.products import product
from distill.network.config import ModelConfig
from distill.network.gradient_memory import keep
from distill.network.layer_kinds import LayerKind
from distill.network.projections import kind_projections

LoraPair = Mapping[str, jax.Array]
"""{"a": [in, r], "b": [r, out]}: the low-rank update of one projection in one layer."""

LayerAdapter = Mapping[str, LoraPair]
"""The pairs of one layer, by the name of the projection. Projections without one are absent."""


class Linear(nnx.Module):
    """x @ kernel, plus a bias where there is one, plus a low-rank update when one is given.

    It computes in the dtype of x, whatever the weights are stored in: they may be bits, or the
    float32 weights that an optimizer moves.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dtype: DTypeLike,
        *,
        has_bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (in_features, out_features)
        scale = 1 / math.sqrt(in_features)
        self.has_bias = has_bias
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape, dtype))
        if has_bias:
            self.bias = nnx.Param(jnp.zeros((out_features,), dtype))

    def __call__(self, inputs: jax.Array, lora: LoraPair | None = None) -> jax.Array:
        """Map [..., in] to [..., out]."""
        # As a plain matrix: the gradient of a low-rank pair is a product summed over rows and
        # positions, which XLA's CPU backend runs several times slower on [B, T, in] than on
        # [B · T, in].
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = product(rows, self.kernel[...])
        if self.has_bias:
            outputs = outputs + values_as(self.bias[...], outputs.dtype)
        if lora is not None:
            down = keep(product(rows, lora["a"]))
            outputs = outputs + product(down, lora["b"])
        return keep(outputs).reshape(*inputs.shape[:-1], -1)


class Embedding(nnx.Module):
    """A [V, D] table: rows looked up by token id, or the kernel of the head."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        dtype: DTypeLike,
        *,
        is_scaled: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (vocab_size, hidden_size)
        self.is_scaled = is_scaled
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, dtype))

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Look up [B, T] ids: [B, T, D], times the square root of D where it is scaled."""
        rows = self.embedding[...][token_ids]
        if not self.is_scaled:
            return rows
        # Rounded to the type of the weights, as Gemma does it.
        return rows * jnp.asarray(math.sqrt(rows.shape[-1]), rows.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_normalize(inputs: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x²) + epsilon) · scale over the last axis, float32 in and out.

    Its gradient is written out because of the sum over features in it, here a product of rows with
    rows. The gradient that JAX derives multiplies first and sums then, for which XLA's CPU backend
    takes 15 times as long on a pack [1, N, F].
    """
    return _rms_forward(inputs, scale, epsilon)[0]


def _rms_forward(
    inputs: jax.Array, scale: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return inputs * _inverse_rms(inputs, epsilon) * scale, (inputs, scale)


def _rms_backward(
    epsilon: float, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, scale = residuals
    inverse = _inverse_rms(inputs, epsilon)
    direct = cotangent * scale
    along = _row_products(direct, inputs)[..., None] / inputs.shape[-1]
    rows = (cotangent * inputs * inverse).reshape(-1, inputs.shape[-1])
    return inverse * (direct - inputs * inverse * inverse * along), rows.sum(0)


rms_normalize.defvjp(_rms_forward, _rms_backward)


def _inverse_rms(inputs: jax.Array, epsilon: float) -> jax.Array:
    mean_square = _row_products(inputs, inputs)[..., None] / inputs.shape[-1]
    return jax.lax.rsqrt(mean_square + epsilon)


def _row_products(left: jax.Array, right: jax.Array) -> jax.Array:
    """[..., F] and [..., F] to [...]."""
    return jnp.einsum("...f,...f->...", left, right)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + epsilon) · scale over the last axis (https://arxiv.org/abs/1910.07467).

    Where it is zero-centred, times 1 + scale. Scale and arithmetic are float32 whatever the
    compute dtype: a bfloat16 mean square has two to three digits.
    """

    def __init__(self, features: int, epsilon: float, *, is_zero_centered: bool = False) -> None:
        start = jnp.zeros if is_zero_centered else jnp.ones
        self.scale = nnx.Param(start((features,), jnp.float32))
        self.epsilon = epsilon
        self.is_zero_centered = is_zero_centered

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalise [..., features]; the dtype is kept."""
        scale = 1.0 + self.scale[...] if self.is_zero_centered else self.scale[...]
        return rms_normalize(inputs.astype(jnp.float32), scale, self.epsilon).astype(inputs.dtype)


def model_norm(config: ModelConfig, features: int | None = None) -> RMSNorm:
    """A norm of the model's sort, over the hidden state unless a width is given."""
    return RMSNorm(
        features or config.hidden_size,
        config.norm_epsilon,
        is_zero_centered=config.zero_centered_norms,
    )


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) · up(x)) (https://arxiv.org/abs/2002.05202)."""

    def __init__(
        self, config: ModelConfig, kind: LayerKind, dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> None:
        shapes = kind_projections(config, kind)
        self.activation = config.activation
        self.gate_proj = Linear(*shapes["gate_proj"], dtype, rngs=rngs)
        self.up_proj = Linear(*shapes["up_proj"], dtype, rngs=rngs)
        self.down_proj = Linear(*shapes["down_proj"], dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array, adapter: LayerAdapter) -> jax.Array:
        """Map [B, T, D] to [B, T, D]."""
        gate = self.gate_proj(hidden, adapter.get("gate_proj"))
        up = self.up_proj(hidden, adapter.get("up_proj"))
        # float32: a bfloat16 sigmoid costs digits, and on a CPU twice the time.
        gated = ACTIVATIONS[self.activation](gate.astype(jnp.float32)) * up.astype(jnp.float32)
        return self.down_proj(gated.astype(hidden.dtype), adapter.get("down_proj"))
