"""Sequences into packs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distill.engine.packs import SMALLEST_PACK, PackWriter, first_fit, pack_slots

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
