"""Buckets cover every length, waste little and are few."""

from hypothesis import given
from hypothesis import strategies as st

from distill.engine.buckets import (
    cache_slots,
    length_bucket,
    power_of_two_at_least,
    power_of_two_at_most,
)


@given(st.integers(1, 1 << 20))
def test_a_bucket_holds_its_length_and_wastes_at_most_a_third(length: int) -> None:
    bucket = length_bucket(length)
    assert bucket >= length
    assert bucket == 16 or bucket - length < bucket / 3
    assert length_bucket(bucket) == bucket


def test_buckets_are_few() -> None:
    assert len({length_bucket(length) for length in range(1, 8193)}) == 19


@given(st.integers(1, 1 << 30))
def test_powers_of_two_enclose_a_number(value: int) -> None:
    below, above = power_of_two_at_most(value), power_of_two_at_least(value)
    assert below <= value <= above
    assert below & (below - 1) == above & (above - 1) == 0
    assert 2 * below > value > above // 2


@given(st.integers(1, 8192))
def test_a_cache_holds_its_tokens_in_one_of_few_sizes(token_count: int) -> None:
    assert cache_slots(token_count) >= token_count
    assert cache_slots(token_count) in {128, 256, 512, 1024, 2048, 4096, 8192}
