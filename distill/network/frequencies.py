"""The rotary frequencies that a config asks for. Knows no JAX: conversion checks against them."""

import math

import numpy as np
from numpy.typing import NDArray

from distill.network.config import LinearRopeScaling, Llama3RopeScaling, ModelConfig, RotaryBase


def inverse_frequencies(config: ModelConfig, rotary: RotaryBase = "default") -> NDArray[np.float32]:
    """Radians per position of each rotary pair: [rotary_width / 2], scaled as the model asks.

    In float32 throughout, as Transformers computes them: at position 8000 the last bit of a
    frequency is visible in the angle.
    """
    width = config.head_dim if config.rotary_width is None else config.rotary_width
    if rotary == "none":
        return np.zeros(width // 2, np.float32)
    theta = config.local_rope_theta if rotary == "local" else config.rope_theta
    assert theta is not None
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies: NDArray[np.float32] = 1 / np.power(np.float32(theta), exponents)
    if rotary == "local":
        return frequencies
    match config.rope_scaling:
        case None:
            return frequencies
        case LinearRopeScaling(factor=factor):
            return frequencies / np.float32(factor)
        case scaling:
            return _scale_llama3(frequencies, scaling)


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
