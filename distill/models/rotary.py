"""Rotary position embedding (https://arxiv.org/abs/2104.09864), in the half-split layout.

Component i of a head turns together with component i + head_dim / 2, as Transformers lays them
out; the weights of GGUF files are laid out for neighbouring pairs and are permuted on conversion.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill.models.config import Llama3RopeScaling, ModelConfig


def inverse_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Radians per position of each rotary pair: [head_dim / 2], scaled as the model asks.

    In float32 throughout, as Transformers computes them: at position 8000 the last bit of a
    frequency is visible in the angle.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies: NDArray[np.float32] = 1 / np.power(np.float32(config.rope_theta), exponents)
    if config.rope_scaling is None:
        return frequencies
    return _scale_llama3(frequencies, config.rope_scaling)


def _scale_llama3(
    frequencies: NDArray[np.float32], scaling: Llama3RopeScaling
) -> NDArray[np.float32]:
    wavelengths = 2 * math.pi / frequencies
    longest_kept = scaling.original_position_count / scaling.high_frequency_factor
    shortest_stretched = scaling.original_position_count / scaling.low_frequency_factor
    # 0 at the stretched end, 1 at the kept end, linear in the number of turns between.
    keep_share = (scaling.original_position_count / wavelengths - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    stretched = frequencies / scaling.factor
    between = (1 - keep_share) * stretched + keep_share * frequencies
    scaled = np.where(wavelengths > shortest_stretched, stretched, between)
    return np.where(wavelengths < longest_kept, frequencies, scaled).astype(np.float32)


def rotary_angles(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every rotary angle, float32.

    Args:
        config: the model.
        positions: [B, T] or [T], absolute, from 0.

    Returns:
        Two arrays [B, T, 1, head_dim / 2] (or without B); the axis of 1 is the heads'.
    """
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies(config)
    return jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]


def rotate(heads: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn [B, T, H, head_dim] by `rotary_angles`; the dtype is kept."""
    cosine, sine = angles
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(heads.dtype)
