"""The parts that the decoder families share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.network.layers import RMSNorm, rms_normalize

EPSILON = 1e-5


def reference(inputs, scale):
    return inputs / np.sqrt((inputs**2).mean(-1, keepdims=True) + EPSILON) * scale


def differences(function, array, cotangent):
    """The gradient of sum(cotangent * function(array)) by central differences."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        step = np.zeros_like(array)
        step[index] = 1e-6
        change = function(array + step) - function(array - step)
        gradient[index] = (cotangent * change).sum() / 2e-6
    return gradient


@pytest.mark.parametrize("shape", [(7,), (3, 7), (1, 3, 7), (2, 3, 2, 7)])
def test_norm_and_both_its_gradients_are_those_of_the_formula(shape):
    rng = np.random.default_rng(0)
    inputs, cotangent = rng.normal(size=(2, *shape))
    scale = rng.normal(size=shape[-1])
    value, pull_back = jax.vjp(
        lambda inputs, scale: rms_normalize(inputs, scale, EPSILON),
        jnp.float32(inputs),
        jnp.float32(scale),
    )
    of_inputs, of_scale = pull_back(jnp.float32(cotangent))
    np.testing.assert_allclose(value, reference(inputs, scale), rtol=1e-5, atol=1e-6)
    expected = differences(lambda array: reference(array, scale), inputs, cotangent)
    np.testing.assert_allclose(of_inputs, expected, rtol=1e-4, atol=1e-5)
    expected = differences(lambda array: reference(inputs, array), scale, cotangent)
    np.testing.assert_allclose(of_scale, expected, rtol=1e-4, atol=1e-5)


def test_norm_keeps_the_dtype_and_is_computed_in_float32():
    norm = RMSNorm(64, EPSILON)
    inputs = jnp.linspace(-3, 5, 128).reshape(2, 64).astype(jnp.bfloat16)
    normed = norm(inputs)
    assert normed.dtype == jnp.bfloat16
    expected = reference(np.asarray(inputs, np.float64), np.ones(64))
    # Rounded once, at the end.
    np.testing.assert_array_equal(normed, jnp.float32(expected).astype(jnp.bfloat16))


def test_zero_centred_norm_multiplies_by_one_more_than_its_scale():
    norm = RMSNorm(4, EPSILON, is_zero_centered=True)
    inputs = jnp.array([[1.0, -2.0, 3.0, 0.5]])
    expected = reference(np.asarray(inputs, np.float64), np.ones(4))
    np.testing.assert_allclose(norm(inputs), expected, rtol=1e-6)
