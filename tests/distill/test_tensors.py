"""Wire tensors are protobuf's own bytes, round-trip bit for bit, and a bad shape is refused."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill.errors import InvalidFieldError
from distill.tensors import (
    decode_floats,
    decode_int32,
    encode_floats,
    encode_int32,
    float_field,
    int32_field,
)
from distill.v1 import tensor_pb2, training_pb2

ANY_RANK = (0, 1, 2, 3, 4)
QUIET_NAN_BIT = 1 << 22

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
bit_patterns = hnp.arrays(np.uint32, shapes)

LAYOUTS = {
    "C order": lambda array: array,
    "Fortran order": np.asfortranarray,
    "reversed": np.flip,
    "transposed": np.transpose,
    "every other": lambda array: np.repeat(array, 2, axis=0)[::2] if array.ndim else array,
    "broadcast": lambda array: np.broadcast_to(array, (2, *array.shape)),
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}
layouts = st.sampled_from(sorted(LAYOUTS)).map(LAYOUTS.__getitem__)


def by_lists(message_type, array):
    return message_type(shape=array.shape, values=array.ravel().tolist())


@given(bit_patterns, layouts)
def test_floats_are_written_as_protobuf_writes_them(bits, layout):
    # A Python float holds no signalling NaN: protobuf cannot be given one to compare with.
    array = layout((bits | QUIET_NAN_BIT).view(np.float32))
    expected = by_lists(tensor_pb2.FloatTensor, array).SerializeToString(deterministic=True)
    assert encode_floats(array).SerializeToString(deterministic=True) == expected


@given(bit_patterns, layouts)
def test_integers_are_written_as_protobuf_writes_them(bits, layout):
    array = layout(bits.view(np.int32))
    expected = by_lists(tensor_pb2.Int32Tensor, array).SerializeToString(deterministic=True)
    assert encode_int32(array).SerializeToString(deterministic=True) == expected


@given(bit_patterns, bit_patterns, layouts)
def test_fields_are_written_as_protobuf_writes_them(ids, weights, layout):
    ids, weights = layout(ids.view(np.int32)), layout((weights | QUIET_NAN_BIT).view(np.float32))
    targets = training_pb2.TokenTargets
    written = b"".join(
        (
            *int32_field(targets.TOKEN_IDS_FIELD_NUMBER, ids),
            *float_field(targets.WEIGHTS_FIELD_NUMBER, weights),
        )
    )
    expected = targets(
        token_ids=by_lists(tensor_pb2.Int32Tensor, ids),
        weights=by_lists(tensor_pb2.FloatTensor, weights),
    )
    assert written == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("size", [31, 32, 33, 4095, 4096, 4097, 2**19])
def test_a_longer_length_on_the_wire_is_protobufs_own(size):
    array = np.arange(size, dtype=np.int32)
    (header, values), targets = int32_field(1, array), training_pb2.TokenTargets
    expected = targets(token_ids=by_lists(tensor_pb2.Int32Tensor, array))
    assert header + values.tobytes() == expected.SerializeToString(deterministic=True)


@given(bit_patterns, layouts)
def test_every_float_comes_back_bit_for_bit(bits, layout):
    array = layout(bits.view(np.float32))
    message = tensor_pb2.FloatTensor.FromString(encode_floats(array).SerializeToString())
    decoded = decode_floats(message, "x", (array.ndim,))
    assert (decoded.dtype, decoded.shape) == (np.float32, array.shape)
    np.testing.assert_array_equal(decoded.view(np.uint32), layout(bits))


@given(bit_patterns, layouts)
def test_every_int32_comes_back(bits, layout):
    array = layout(bits.view(np.int32))
    message = tensor_pb2.Int32Tensor.FromString(encode_int32(array).SerializeToString())
    decoded = decode_int32(message, "x", (array.ndim,))
    assert (decoded.dtype, decoded.shape) == (np.int32, array.shape)
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 3.4028235e38]
)
def test_a_special_float_keeps_its_bits_and_its_sign(value):
    array = np.full(3, value, np.float32)
    decoded = decode_floats(encode_floats(array), "x", (1,))
    assert decoded.tobytes() == array.tobytes()


@given(hnp.arrays(np.float64, shapes, elements=st.floats(width=32)))
def test_wider_floats_are_rounded_to_float32(array):
    decoded = decode_floats(encode_floats(array), "x", ANY_RANK)
    np.testing.assert_array_equal(decoded, array.astype(np.float32))


def test_a_tensor_without_values_is_present_all_the_same():
    empty = np.zeros((0, 3), np.float32)
    written = b"".join(float_field(training_pb2.TokenTargets.WEIGHTS_FIELD_NUMBER, empty))
    message = training_pb2.TokenTargets.FromString(written)
    assert message.HasField("weights")
    assert not message.HasField("token_ids")
    assert decode_floats(message.weights, "x", (2,)).shape == (0, 3)


def test_a_decoded_array_may_be_written_to_and_is_no_part_of_its_message():
    message = encode_floats(np.zeros(3, np.float32))
    decoded = decode_floats(message, "x", (1,))
    decoded[:] = 1
    message.values[0] = 2
    assert list(message.values) == [2, 0, 0]
    assert decoded.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("message_type", "dtype"),
    [(tensor_pb2.FloatTensor, np.float32), (tensor_pb2.Int32Tensor, np.int32)],
)
def test_protobuf_gives_its_values_as_an_array_and_not_one_by_one(message_type, dtype):
    # One by one they would be 64 bits wide: the sign of a copy at memory speed.
    assert np.asarray(message_type(values=[1, 2]).values).dtype == dtype


@given(st.lists(st.integers(-(2**62), 2**62), max_size=4), st.lists(st.integers(0, 9), max_size=6))
@example([0, 2**61], [])
@example([0, 2**31 - 1], [])
def test_any_shape_either_fits_its_values_or_is_refused(shape, values):
    message = tensor_pb2.Int32Tensor(shape=shape, values=values)
    fits = (
        len(shape) in (1, 2)
        and all(0 <= extent < 2**31 for extent in shape)
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
