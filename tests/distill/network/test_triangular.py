"""The inverse of unit triangular matrices."""

import jax
import numpy as np
import pytest

from distill.network.triangular import unit_lower_inverse


def strict(*shape, seed=0):
    return np.tril(np.random.default_rng(seed).normal(size=shape), -1).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 16, 40])
def test_it_is_the_inverse(size):
    matrices = 0.4 * strict(3, 2, size, size)
    expected = np.linalg.inv(np.eye(size) + matrices)
    np.testing.assert_allclose(unit_lower_inverse(matrices), expected, rtol=1e-4, atol=1e-5)


def test_large_powers_that_cancel_lose_nothing():
    size = 64
    ones = np.tril(np.ones((size, size), np.float32), -1)
    bidiagonal = np.eye(size) - np.eye(size, k=-1)
    np.testing.assert_array_equal(unit_lower_inverse(ones), bidiagonal)


def test_its_gradient_is_that_of_the_inverse():
    matrix, cotangent, direction = 0.4 * strict(9, 9), strict(9, 9, seed=1), strict(9, 9, seed=2)
    gradient = jax.grad(lambda matrix: (unit_lower_inverse(matrix) * cotangent).sum())(matrix)
    step = 1e-6 * direction.astype(np.float64)
    ends = [(np.linalg.inv(np.eye(9) + matrix + sign * step) * cotangent).sum() for sign in (1, -1)]
    np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
