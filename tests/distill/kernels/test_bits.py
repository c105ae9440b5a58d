"""bfloat16 arrays as bits: exact, and never differentiated by mistake."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.kernels.bits import as_bits, bits_like, from_bits, zeros_as_bits
from tests.support.devices import only_cpu


@only_cpu
def test_the_way_there_and_back_keeps_every_bit_and_all_other_arrays():
    every_value = jnp.arange(1 << 16, dtype=jnp.uint32).astype(jnp.uint16)
    tree = {
        "half": jax.lax.bitcast_convert_type(every_value, jnp.bfloat16),
        "single": jnp.arange(3.0),
        "ids": jnp.arange(3),
        "none": None,
    }
    stored = as_bits(tree)
    assert stored["half"].dtype == jnp.uint16
    np.testing.assert_array_equal(stored["half"], every_value)
    assert stored["single"] is tree["single"]
    assert stored["ids"] is tree["ids"]
    back = from_bits(stored)
    assert back["half"].dtype == jnp.bfloat16
    # NaNs are values too.
    again = jax.lax.bitcast_convert_type(back["half"], jnp.uint16)
    np.testing.assert_array_equal(again, every_value)


@pytest.mark.parametrize("stored_as", ["bfloat16", "float32"])
@pytest.mark.parametrize("computed_in", ["bfloat16", "float32"])
def test_values_are_rounded_to_what_they_are_stored_as(stored_as, computed_in):
    values = jnp.asarray([1 / 3, -7.0, 1e-20], computed_in)
    stored = bits_like(values, as_bits(jnp.zeros(3, stored_as)))
    result = from_bits(stored)
    assert result.dtype == jnp.dtype(stored_as)
    np.testing.assert_array_equal(result, values.astype(stored_as))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int32"])
def test_zeros_are_stored_as_any_array_is(dtype):
    zeros, stored = zeros_as_bits((2, 3), dtype), as_bits(jnp.zeros((2, 3), dtype))
    assert zeros.dtype == stored.dtype
    np.testing.assert_array_equal(zeros, stored)


@only_cpu
def test_differentiating_an_array_through_its_bits_is_refused_not_zero():
    with pytest.raises(TypeError, match="integers, which have no gradient"):
        jax.grad(lambda array: from_bits(as_bits(array)).sum())(jnp.ones(3, jnp.bfloat16))
    # What is not differentiated may pass through beside what is.
    other = jnp.ones(3, jnp.bfloat16)
    gradient = jax.grad(lambda array: (from_bits(as_bits(other)) * array).sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.ones(3))
