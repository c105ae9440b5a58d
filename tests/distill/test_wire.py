"""The bytes of rows are protobuf's own, and rows come back as they were."""

from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError
from distill.rows import ARRAY_RANKS, Rows, as_scored
from distill.tensors import decode_floats, decode_int32, encode_floats, encode_int32
from distill.v1 import scoring_pb2
from distill.wire import rows_from_message, rows_to_bytes


def chunk_of(
    row_count: int, top_k: int, *, prompt_index: int = 3, first_row: int = 7, seed: int = 0
) -> Rows:
    """Any values: the codec knows nothing of probabilities."""
    random = np.random.default_rng(seed)

    def bits(*shape: int) -> np.ndarray:
        return random.integers(0, 2**32, shape, np.uint32)

    def floats(*shape: int) -> np.ndarray:
        # The bit that makes a NaN quiet: Python's floats have no other NaN, ours go through.
        return (bits(*shape) | 1 << 22).view(np.float32)

    return Rows(
        prompt_index=prompt_index,
        first_row=first_row,
        token_ids=bits(row_count, top_k).view(np.int32),
        log_probs=floats(row_count, top_k),
        prompt_log_probs=floats(row_count),
        tail_log_probs=floats(row_count),
        entropies=floats(row_count),
        most_probable=bool(seed % 2),
    )


def by_lists(chunk: Rows) -> scoring_pb2.TopKChunk:
    """The message by protobuf's own means, whatever fields the contract has."""
    message = scoring_pb2.TopKChunk()
    for field in message.DESCRIPTOR.fields:
        value = getattr(chunk, field.name)
        if field.message_type is None:
            setattr(message, field.name, value)
        elif value is not None:
            tensor = getattr(message, field.name)
            tensor.SetInParent()
            tensor.shape.extend(value.shape)
            tensor.values.extend(value.ravel().tolist())
    return message


ANY_INT32 = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, 127, 128])


@given(
    row_count=st.integers(0, 40),
    top_k=st.integers(0, 40),
    prompt_index=ANY_INT32,
    first_row=ANY_INT32,
    seed=st.integers(0, 2**32 - 1),
)
def test_the_bytes_of_a_chunk_are_protobufs_own(
    row_count: int, top_k: int, prompt_index: int, first_row: int, seed: int
) -> None:
    chunk = chunk_of(row_count, top_k, prompt_index=prompt_index, first_row=first_row, seed=seed)
    assert rows_to_bytes(chunk) == by_lists(chunk).SerializeToString(deterministic=True)


def test_a_chunk_keeps_every_value_on_the_wire() -> None:
    chunk = Rows(
        prompt_index=3,
        first_row=7,
        token_ids=np.array([[5, 1], [0, 99]], np.int32),
        log_probs=np.array([[-0.1, -3.5], [-0.7, -0.7]], np.float32),
        prompt_log_probs=np.array([-2.5, -0.7], np.float32),
        tail_log_probs=np.array([-np.inf, -4.25], np.float32),
        entropies=np.array([0.0, 1.5], np.float32),
        draw_weights=np.array([[0.75, 0.25], [1.0, 0.0]], np.float32),
    )
    message = scoring_pb2.TopKChunk.FromString(rows_to_bytes(chunk))
    assert (message.prompt_index, message.first_row) == (3, 7)
    np.testing.assert_array_equal(decode_int32(message.token_ids, "", (2,)), chunk.token_ids)
    for name, rank in (
        ("log_probs", 2),
        ("draw_weights", 2),
        ("prompt_log_probs", 1),
        ("tail_log_probs", 1),
        ("entropies", 1),
    ):
        decoded = decode_floats(getattr(message, name), name, (rank,))
        np.testing.assert_array_equal(decoded, getattr(chunk, name))


def test_a_chunk_cut_short_anywhere_is_never_taken_for_a_whole_one() -> None:
    whole = rows_to_bytes(chunk_of(2, 3))
    for end in range(len(whole)):
        with pytest.raises((DecodeError, InvalidFieldError, ValueError)):
            as_scored(rows_from_message(scoring_pb2.TopKChunk.FromString(whole[:end]), "chunk"))


def test_a_chunk_keeps_the_fields_of_a_later_contract_when_it_is_relayed() -> None:
    later = rows_to_bytes(chunk_of(2, 3)) + b"\xfa\x3f\x03abc"  # field 1023
    assert scoring_pb2.TopKChunk.FromString(later).SerializeToString(deterministic=True) == later


def test_rows_have_the_fields_of_the_message() -> None:
    assert set(Rows.__dataclass_fields__) == set(scoring_pb2.TopKChunk.DESCRIPTOR.fields_by_name)


@given(
    row_count=st.integers(0, 9),
    top_k=st.integers(0, 9),
    seed=st.integers(0, 99),
    drawn=st.booleans(),
    absent=st.sets(st.sampled_from(["prompt_log_probs", "tail_log_probs", "entropies"])),
)
def test_rows_come_back_from_the_wire_bit_for_bit(
    row_count: int, top_k: int, seed: int, drawn: bool, absent: set[str]
) -> None:
    rows = replace(chunk_of(row_count, top_k, seed=seed), **dict.fromkeys(absent))
    if drawn:
        rows = replace(rows, draw_weights=rows.log_probs[::-1])
    message = scoring_pb2.TopKChunk.FromString(rows_to_bytes(rows))
    read = rows_from_message(message, "chunk")
    assert (read.prompt_index, read.first_row) == (rows.prompt_index, rows.first_row)
    assert read.most_probable == rows.most_probable
    for name in ARRAY_RANKS:
        sent, received = getattr(rows, name), getattr(read, name)
        if sent is None:
            assert received is None
        else:
            assert received.shape == sent.shape
            assert received.tobytes() == sent.tobytes()


@pytest.mark.parametrize("name", [name for name in ARRAY_RANKS if name != "token_ids"])
def test_an_array_that_describes_other_rows_is_refused_by_name(name: str) -> None:
    shape = (3, 4)[: ARRAY_RANKS[name]]
    message = scoring_pb2.TopKChunk.FromString(rows_to_bytes(chunk_of(2, 4)))
    getattr(message, name).CopyFrom(encode_floats(np.zeros(shape, np.float32)))
    with pytest.raises(InvalidFieldError, match=rf"chunks\[7\].{name}.shape: must be \[2.*got \[3"):
        rows_from_message(message, "chunks[7]")


def test_token_ids_without_a_support_axis_are_refused() -> None:
    message = scoring_pb2.TopKChunk.FromString(rows_to_bytes(chunk_of(2, 4)))
    message.token_ids.CopyFrom(encode_int32(np.zeros(8, np.int32)))
    with pytest.raises(InvalidFieldError, match=r"chunk.token_ids.shape: must have 2 dimensions"):
        rows_from_message(message, "chunk")
