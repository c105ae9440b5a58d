"""Every valid encoding of a tensor is read, however another writer split it, and no broken one."""

import struct

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill.errors import InvalidFieldError
from distill.tensors import decode_floats, decode_int32, encode_floats, encode_int32
from distill.v1 import tensor_pb2
from distill.wire_format import payload_header, varint

SHAPE, VALUES = 1, 2
VARINT, FIXED64, FIXED32 = 0, 1, 5

arrays = hnp.arrays(
    np.uint32, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
)  # as bits

READERS = {
    np.float32: (tensor_pb2.FloatTensor, encode_floats, decode_floats),
    np.int32: (tensor_pb2.Int32Tensor, encode_int32, decode_int32),
}
dtypes = st.sampled_from(sorted(READERS, key=str))


def packed(number, payload):
    return payload_header(number, len(payload)) + payload


def unpacked(number, wire_type, payload):
    return varint(number << 3 | wire_type) + payload


UNKNOWN = (
    packed(15, b"text of a later contract"),
    unpacked(16, VARINT, varint(-1)),
    unpacked(9, FIXED64, bytes(8)),
    unpacked(2**29 - 1, FIXED32, bytes(4)),
)


@st.composite
def runs(draw, items):
    """The items in order, as packed runs and single items."""
    pieces, start = [], 0
    while start < len(items):
        length = draw(st.integers(0, len(items) - start))
        pieces.append((items[start : start + length], draw(st.booleans())))
        start += length
        # Empty runs are valid, but the test must end.
        if not length:
            pieces.append((items[start : start + 1], draw(st.booleans())))
            start += 1
    return pieces


def field_parts(number, wire_type, pieces):
    for run, is_packed in pieces:
        if is_packed:
            yield packed(number, b"".join(run))
        else:
            yield from (unpacked(number, wire_type, item) for item in run)


def interleaved(draw, *sequences):
    """All parts; the order within a sequence stays."""
    order = draw(st.permutations([index for index, seq in enumerate(sequences) for _ in seq]))
    iterators = [iter(sequence) for sequence in sequences]
    return b"".join(next(iterators[index]) for index in order)


@given(st.data(), arrays, dtypes)
def test_packed_runs_single_entries_and_unknown_fields_are_read_in_any_order(data, bits, dtype):
    message_type, _, decode = READERS[dtype]
    extents = [varint(extent) for extent in bits.shape]
    values = [struct.pack("<I", value) for value in bits.ravel().tolist()]
    encoded = interleaved(
        data.draw,
        list(field_parts(SHAPE, VARINT, data.draw(runs(extents)))),
        list(field_parts(VALUES, FIXED32, data.draw(runs(values)))),
        data.draw(st.lists(st.sampled_from(UNKNOWN), max_size=4)),
    )
    decoded = decode(message_type.FromString(encoded), "x", (bits.ndim,))
    assert decoded.shape == bits.shape
    np.testing.assert_array_equal(decoded.view(np.uint32), bits)


@given(arrays, dtypes)
def test_a_tensor_cut_short_anywhere_is_refused(bits, dtype):
    message_type, encode, decode = READERS[dtype]
    whole = encode(bits.view(dtype)).SerializeToString(deterministic=True)
    for end in range(len(whole)):
        with pytest.raises((DecodeError, InvalidFieldError)):
            decode(message_type.FromString(whole[:end]), "x", (bits.ndim,))


@pytest.mark.parametrize("dtype", sorted(READERS, key=str))
@pytest.mark.parametrize("byte_count", [1, 2, 3, 5, 6, 7, 9, 4095, 4097])
def test_a_packed_run_that_ends_inside_a_value_is_refused(dtype, byte_count):
    message_type, _, _ = READERS[dtype]
    with pytest.raises(DecodeError):
        message_type.FromString(packed(VALUES, bytes(byte_count)))


@pytest.mark.parametrize("dtype", sorted(READERS, key=str))
def test_a_length_beyond_the_end_is_refused_before_anything_is_allocated(dtype):
    message_type, _, _ = READERS[dtype]
    for byte_count in (8, 2**20, 2**31 - 4, 2**31, 2**62):
        with pytest.raises(DecodeError):
            message_type.FromString(payload_header(VALUES, byte_count) + bytes(4))


@given(st.binary(max_size=60), dtypes)
def test_arbitrary_bytes_are_a_tensor_or_refused(encoded, dtype):
    message_type, _, decode = READERS[dtype]
    try:
        decoded = decode(message_type.FromString(encoded), "x", (1, 2))
    except (DecodeError, InvalidFieldError):
        return
    assert decoded.dtype == dtype
