"""What is written by hand is what protobuf writes."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distill.v1 import scoring_pb2, student_service_pb2, training_pb2
from distill.wire_format import int_field, payload_header

# Where a varint grows by a byte, and a little around.
near_a_power_of_two = st.builds(
    lambda bits, step, sign: sign * (2**bits + step),
    st.integers(0, 62),
    st.integers(-1, 1),
    st.sampled_from([1, -1]),
)


@given(st.integers(-(2**63), 2**63 - 1) | near_a_power_of_two)
@example(0)
@example(-(2**63))
def test_an_int64_field_is_protobufs_own(value):
    expected = training_pb2.Mutation(sequence_number=value).SerializeToString(deterministic=True)
    assert int_field(3, value) == expected


@given(st.integers(-(2**31), 2**31 - 1))
@example(0)
def test_an_int32_field_is_protobufs_own_also_from_a_numpy_integer(value):
    expected = scoring_pb2.TopKChunk(prompt_index=value).SerializeToString(deterministic=True)
    assert int_field(1, value) == expected
    assert int_field(1, np.int32(value)) == expected


@pytest.mark.parametrize("byte_count", [1, 127, 128, 129, 2**14 - 1, 2**14, 2**21 - 1, 2**21])
def test_a_payload_follows_its_header_as_in_protobuf(byte_count):
    payload = bytes(byte_count)
    message = student_service_pb2.ExportWeightsResponse(data=payload)
    assert payload_header(3, byte_count) + payload == message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("number", [15, 16, 1023, 2**29 - 1])
def test_a_field_number_of_any_size_is_read_back_as_itself(number):
    written = payload_header(number, 3) + b"abc" + int_field(number, 5)
    # As unknown fields, protobuf keeps them as they came, or refuses what is no field.
    message = training_pb2.BaseWeights.FromString(written)
    assert message.SerializeToString(deterministic=True) == written
