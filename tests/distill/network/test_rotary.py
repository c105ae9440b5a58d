"""Rotary positions."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from distill.network.frequencies import inverse_frequencies
from distill.network.rotary import rotary_angles, rotate
from tests.support.tiny_models import LLAMA3_ROPE, tiny_config

CONFIG = tiny_config(head_dim=16)


def rotated(vector: np.ndarray, position: int) -> np.ndarray:
    angles = rotary_angles(CONFIG, jnp.array([[position]]))
    return np.asarray(rotate(jnp.asarray(vector)[None, None, None], angles))[0, 0, 0]


def test_scores_depend_on_the_distance_alone() -> None:
    query, key = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    near = rotated(query, 5) @ rotated(key, 2)
    far = rotated(query, 105) @ rotated(key, 102)
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert abs(near - rotated(query, 5) @ rotated(key, 3)) > 1e-3


def test_position_zero_changes_nothing() -> None:
    vector = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    np.testing.assert_array_equal(rotated(vector, 0), vector)


def test_component_turns_with_the_one_half_a_head_away() -> None:
    turned = rotated(np.eye(16, dtype=np.float32)[0], 1)
    np.testing.assert_allclose(turned[[0, 8]], [np.cos(1), np.sin(1)], atol=1e-6)
    assert np.count_nonzero(turned) == 2


def test_frequencies_fall_from_one_to_nearly_the_inverse_base() -> None:
    frequencies = inverse_frequencies(CONFIG)
    np.testing.assert_allclose(frequencies, 10000.0 ** (-np.arange(8) / 8), rtol=1e-6)
    assert frequencies.dtype == np.float32


def test_llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    plain = inverse_frequencies(CONFIG)
    scaled = inverse_frequencies(dataclasses.replace(CONFIG, rope_scaling=LLAMA3_ROPE))
    ratio = plain / scaled
    wavelengths = 2 * np.pi / plain
    kept, stretched = wavelengths < 64 / 4, wavelengths > 64 / 1
    between = ~kept & ~stretched
    assert kept.any()
    assert stretched.any()
    assert between.any()
    np.testing.assert_array_equal(ratio[kept], 1)
    np.testing.assert_allclose(ratio[stretched], 8, rtol=1e-6)
    # Linear in the number of turns within the original positions, between 1 and 4 of them.
    share = (64 / wavelengths[between] - 1) / 3
    np.testing.assert_allclose(1 / ratio[between], share + (1 - share) / 8, rtol=1e-5)
