"""The rotary frequencies that a config asks for. Knows no JAX: conversion checks against them."""

import math

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
