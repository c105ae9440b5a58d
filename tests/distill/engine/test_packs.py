"""Sequences into packs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.packs import SMALLEST_PACK, PackWriter, first_fit, pack_slots
from distill.network.packed_attention import BLOCK_SLOTS

SIZES = st.lists(st.integers(1, 120), max_size=40)


@given(SIZES, st.integers(1, 100))
def test_every_item_is_in_one_pack_and_only_a_large_one_exceeds_the_capacity(sizes, capacity):
    packs = first_fit(sizes, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in pack) <= capacity or len(pack) == 1 for pack in packs)


@given(SIZES, st.integers(1, 100))
def test_no_two_packs_would_fit_into_one(sizes, capacity):
    loads = sorted(sum(sizes[i] for i in pack) for pack in first_fit(sizes, capacity))
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


@given(st.integers(1, 10_000))
def test_a_pack_holds_the_tokens_and_wastes_less_than_a_third(token_count):
    slots = pack_slots(token_count)
    assert slots >= token_count
    assert slots == SMALLEST_PACK or (slots - token_count) * 3 < slots + 3


def test_up_to_the_budget_there_are_seven_sizes():
    assert len({pack_slots(count) for count in range(1, 1025)}) == 7


def test_a_pack_is_its_sequences_one_after_the_other_and_padding_that_sees_itself():
    writer = PackWriter()
    first = writer.add(np.array([7, 8, 9], np.int32))
    second = writer.add(np.array([5], np.int32), prefix=(first, first + 3))
    third = writer.add(np.array([], np.int32))
    assert (first, second, third) == (0, 3, 4)
    pack = writer.pack(6)
    np.testing.assert_array_equal(pack.token_ids, [7, 8, 9, 5, 0, 0])
    np.testing.assert_array_equal(pack.segments.positions, [0, 1, 2, 3, 0, 0])
    np.testing.assert_array_equal(pack.segments.starts, [0, 0, 0, 3, 4, 5])
    np.testing.assert_array_equal(pack.segments.prefix_starts, np.zeros(6))
    np.testing.assert_array_equal(pack.segments.prefix_ends, [0, 0, 0, 3, 0, 0])


def blocks_touched(start, length):
    return -(-(start % BLOCK_SLOTS + length) // BLOCK_SLOTS)


def test_spare_slots_let_each_sequence_begin_with_a_block_of_attention():
    writer = PackWriter(spare_slots=4)
    length = BLOCK_SLOTS - 1
    starts = [writer.add(np.full(length, 7, np.int32)) for _ in range(4)]
    assert starts == [0, BLOCK_SLOTS, 2 * BLOCK_SLOTS, 3 * BLOCK_SLOTS]
    segments = writer.pack(4 * BLOCK_SLOTS).segments
    gaps = BLOCK_SLOTS * np.arange(1, 5) - 1
    np.testing.assert_array_equal(segments.starts[gaps], gaps)
    np.testing.assert_array_equal(segments.positions[gaps], 0)


@given(st.lists(st.integers(0, 3 * BLOCK_SLOTS), min_size=1, max_size=8), st.integers(0, 700))
def test_sequences_keep_order_and_length_and_no_more_than_the_spare_slots_are_left_out(
    lengths, spare
):
    writer = PackWriter(spare_slots=spare)
    starts = [writer.add(np.full(length, i + 1, np.int32)) for i, length in enumerate(lengths)]
    pack = writer.pack(sum(lengths) + spare)
    expected = np.zeros(sum(lengths) + spare, np.int32)
    end = 0
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        gap = start - end
        # Nothing is left out that spares no block.
        assert gap == 0 or blocks_touched(end, length) > blocks_touched(start, length)
        expected[start : start + length] = i + 1
        end = start + length
    np.testing.assert_array_equal(pack.token_ids, expected)
    empty = expected == 0
    np.testing.assert_array_equal(pack.segments.starts[empty], np.flatnonzero(empty))
