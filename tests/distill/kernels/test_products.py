"""Products and their gradients against float64, whatever their shapes and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.kernels.products import (
    MUCH_WIDER,
    float32_product,
    left_gradient,
    product,
    right_gradient,
    transposed,
)
from tests.support.devices import only_cpu

SHAPES = [(5, 7, 3), (3, 2, MUCH_WIDER * 2), (6, MUCH_WIDER * 3, 3), (1, 9, 9)]
"""(rows, in, out); the third is transposed the other way round."""


def random(shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def wide(array):
    return np.asarray(array, np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_product_and_its_gradients_are_those_of_the_rounded_factors(rows, inputs, outputs, dtype):
    left, right = random((rows, inputs), dtype, 0), random((inputs, outputs), dtype, 1)
    cotangent = random((rows, outputs), dtype, 2)
    # All three are summed in float32, so bfloat16 factors cost no digit beyond their own.
    for function, given, expected in (
        (float32_product, (left, right), wide(left) @ wide(right)),
        (left_gradient, (cotangent, right), wide(cotangent) @ wide(right).T),
        (right_gradient, (left, cotangent), wide(left).T @ wide(cotangent)),
    ):
        result = jax.jit(function)(*given)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_differentiated_product_gives_both_gradients_in_the_dtypes_of_its_factors(
    rows, inputs, outputs, dtype
):
    left, right = random((rows, inputs), dtype, 0), random((inputs, outputs), dtype, 1)
    cotangent = random((rows, outputs), dtype, 2)

    @jax.jit
    def gradients(left, right, cotangent):
        value, pull_back = jax.vjp(product, left, right)
        return value, *pull_back(cotangent)

    value, of_left, of_right = gradients(left, right, cotangent)
    assert value.dtype == of_left.dtype == of_right.dtype == jnp.dtype(dtype)
    rounding = 2.0**-8 if dtype == "bfloat16" else 1e-5
    for result, expected in (
        (value, wide(left) @ wide(right)),
        (of_left, wide(cotangent) @ wide(right).T),
        (of_right, wide(left).T @ wide(cotangent)),
    ):
        np.testing.assert_allclose(wide(result), expected, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "bits"])
def test_a_kernel_is_rounded_to_the_rows_and_its_gradient_is_not(dtype, stored):
    rows, inputs, outputs = SHAPES[0]
    left, cotangent = random((rows, inputs), dtype, 0), random((rows, outputs), dtype, 2)
    kernel = random((inputs, outputs), "float32" if stored == "float32" else "bfloat16", 1)
    rounded = kernel.astype(dtype)
    given = jax.lax.bitcast_convert_type(kernel, jnp.uint16) if stored == "bits" else kernel
    value, pull_back = jax.vjp(product, left, given)
    of_left, of_kernel = pull_back(cotangent)
    np.testing.assert_array_equal(value, float32_product(left, rounded).astype(dtype))
    np.testing.assert_array_equal(of_left, left_gradient(cotangent, rounded).astype(dtype))
    if stored == "bits":
        assert of_kernel.dtype == jax.dtypes.float0
    else:
        expected = right_gradient(left, cotangent).astype(kernel.dtype)
        assert of_kernel.dtype == kernel.dtype
        np.testing.assert_array_equal(of_kernel, expected)


@only_cpu
def test_bfloat16_product_is_handed_factors_that_lie_as_it_reads_them():
    program = jax.jit(left_gradient).lower(
        jax.ShapeDtypeStruct((48, 80), jnp.bfloat16), jax.ShapeDtypeStruct((112, 80), jnp.bfloat16)
    )
    text = program.compile().as_text()
    # Merged with the transposition, the product would read [112, 80] along its second axis.
    assert "rhs_contracting_dims={0}" in text
    assert "rhs_contracting_dims={1}" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transposed_is_the_transpose_inside_and_outside_of_a_program(dtype):
    matrix = random((5, 8), dtype, 0)
    for function in (transposed, jax.jit(transposed)):
        np.testing.assert_array_equal(wide(function(matrix)), wide(matrix).T)
