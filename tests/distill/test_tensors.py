"""Wire tensors round-trip, and a shape that does not fit is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill.errors import InvalidFieldError
from distill.tensors import decode_floats, decode_int32, encode_floats, encode_int32
from distill.v1 import tensor_pb2

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)


@given(hnp.arrays(np.float32, shapes))
def test_floats_round_trip(array):
    message = tensor_pb2.FloatTensor.FromString(encode_floats(array).SerializeToString())
    decoded = decode_floats(message, "x", (1, 2, 3))
    assert decoded.shape == array.shape
    np.testing.assert_array_equal(decoded, array)  # NaN equals NaN here


@given(hnp.arrays(np.int32, shapes))
def test_int32_round_trip(array):
    message = tensor_pb2.Int32Tensor.FromString(encode_int32(array).SerializeToString())
    np.testing.assert_array_equal(decode_int32(message, "x", (1, 2, 3)), array)


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1)))
def test_row_major_order_whatever_the_layout_in_memory(array):
    message = encode_int32(np.asfortranarray(array))
    assert list(message.values) == array.ravel(order="C").tolist()


@given(st.lists(st.integers(-(2**62), 2**62), max_size=4), st.lists(st.integers(0, 9), max_size=6))
def test_any_shape_either_fits_its_values_or_is_refused(shape, values):
    message = tensor_pb2.Int32Tensor(shape=shape, values=values)
    fits = (
        len(shape) in (1, 2)
        and all(extent >= 0 for extent in shape)
        and math.prod(shape) == len(values)
    )
    if not fits:
        with pytest.raises(InvalidFieldError, match=r"^x\.shape: "):
            decode_int32(message, "x", (1, 2))
        return
    decoded = decode_int32(message, "x", (1, 2))
    assert decoded.size == len(values)
    assert list(decoded.shape) == shape


def test_error_names_field_and_both_sizes():
    message = tensor_pb2.FloatTensor(shape=[2, 3], values=[1.0] * 5)
    with pytest.raises(InvalidFieldError, match=r"x.shape: .* number of values 5, got \[2, 3\]"):
        decode_floats(message, "x", (2,))
