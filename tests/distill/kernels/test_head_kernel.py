"""The head's kernel gives the same logits and the same gradient, however the device reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.kernels import head_kernel
from distill.kernels.head_kernel import (
    FEW_ROWS,
    empty_kernel_sum,
    head_kernel_gradient,
    head_product,
    kernel_columns,
    summed_kernel_gradient,
)
from distill.kernels.profile import ACCELERATOR, CPU, device_profile

HIDDEN, VOCAB = 12, 50
PROFILES = pytest.mark.parametrize("profile", [CPU, ACCELERATOR], ids=["cpu", "accelerator"])


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@PROFILES
@pytest.mark.parametrize("row_count", [1, 2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_the_same_however_the_kernel_is_read(
    row_count, has_columns, dtype, profile, monkeypatch
):
    monkeypatch.setattr(head_kernel, "device_profile", lambda: profile)
    hidden = random(row_count, HIDDEN).astype(dtype)
    kernel = random(VOCAB, HIDDEN, seed=1).astype(dtype)
    columns = kernel.T if has_columns else None
    logits = jax.jit(lambda *arrays: head_product(*arrays))(hidden, kernel, columns)
    assert logits.dtype == jnp.float32
    exact = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)


@PROFILES
def test_the_summed_gradient_is_the_same_however_the_sum_lies(profile, monkeypatch):
    monkeypatch.setattr(head_kernel, "device_profile", lambda: profile)
    hidden, kernel, cotangent = random(9, HIDDEN), random(VOCAB, HIDDEN), random(9, VOCAB, seed=2)
    total = empty_kernel_sum(kernel) + head_kernel_gradient(hidden, cotangent)
    assert total.shape == ((HIDDEN, VOCAB) if profile == CPU else (VOCAB, HIDDEN))
    exact = np.asarray(cotangent, np.float64).T @ np.asarray(hidden, np.float64)
    np.testing.assert_allclose(summed_kernel_gradient(total), exact, rtol=1e-5, atol=1e-5)


def test_kernel_is_held_twice_only_where_its_products_are_quicker_so():
    kernel = random(VOCAB, HIDDEN)
    assert kernel_columns(kernel) is None
    columns = kernel_columns(kernel.astype(jnp.bfloat16))
    if not device_profile().stores_head_columns:
        assert columns is None
    else:
        np.testing.assert_array_equal(columns, kernel.astype(jnp.bfloat16).T)
