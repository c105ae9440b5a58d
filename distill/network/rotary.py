"""Rotary position embedding (https://arxiv.org/abs/2104.09864), in the half-split layout.

Component i of a head turns together with component i + head_dim / 2, as Transformers lays them
out; the weights of GGUF files are laid out for neighbouring pairs and are permuted on conversion.
"""

import jax
import jax.numpy as jnp

from distill.network.config import ModelConfig, RotaryBase
from distill.network.frequencies import inverse_frequencies


def rotary_angles(
    config: ModelConfig, positions: jax.Array, rotary: RotaryBase = "default"
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, position · frequency_i, in float32.

    The frequencies are theta^(-2i / rotary_width), changed as the model asks: see `frequencies`.

    Args:
        config: the model.
        positions: [B, T] or [T], absolute, from 0.
        rotary: which of the model's rotary positions.

    Returns:
        Two arrays [B, T, 1, rotary_width / 2] (or without B). The axis of 1 is that of the heads.
    """
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config, rotary)
    return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def rotate(heads: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair of components (x_i, x_j) to (x_i cos - x_j sin, x_j cos + x_i sin).

    j is i + rotary_width / 2. Components beyond the rotary width do not turn.

    Args:
        heads: [B, T, H, head_dim].
        angles: of `rotary_angles`.

    Returns:
        [B, T, H, head_dim] in the dtype of `heads`, computed in float32.
    """
    cosine, sine = angles
    width = 2 * cosine.shape[-1]
    if width < heads.shape[-1]:
        turning, still = jnp.split(heads, [width], axis=-1)
        return jnp.concatenate([rotate(turning, angles), still], axis=-1)
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)
