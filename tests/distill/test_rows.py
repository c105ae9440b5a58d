"""Rows: cutting and joining lose nothing, and parts that do not tile are refused."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.rows import ARRAY_RANKS, Rows, ScoredRows, TilingError, as_scored, concatenate

OPTIONAL = [each.name for each in fields(Rows) if each.default is None]


def rows_of(
    row_count: int, *, first_row: int = 3, drawn: bool = False, most_probable: bool = True
) -> Rows:
    """Rows whose every number tells its row."""
    numbers = np.arange(first_row, first_row + row_count, dtype=np.float32)
    table = numbers[:, None] + np.array([0.0, 0.25], np.float32)
    return Rows(
        prompt_index=5,
        first_row=first_row,
        token_ids=table.astype(np.int32),
        log_probs=-table,
        prompt_log_probs=-numbers,
        tail_log_probs=-2 * numbers,
        entropies=numbers,
        draw_weights=table if drawn else None,
        most_probable=most_probable,
    )


def assert_same(rows: Rows, expected: Rows) -> None:
    assert (rows.prompt_index, rows.first_row) == (expected.prompt_index, expected.first_row)
    assert rows.most_probable == expected.most_probable
    for name in ARRAY_RANKS:
        np.testing.assert_array_equal(getattr(rows, name), getattr(expected, name))


@given(
    row_count=st.integers(1, 12), drawn=st.booleans(), cuts=st.sets(st.integers(1, 11), max_size=5)
)
def test_the_parts_of_rows_joined_are_those_rows(
    row_count: int, drawn: bool, cuts: set[int]
) -> None:
    whole = rows_of(row_count, drawn=drawn)
    bounds = [0, *sorted(cut for cut in cuts if cut < row_count), row_count]
    parts = [whole.slice(3 + start, 3 + end) for start, end in itertools.pairwise(bounds)]
    assert [len(part) for part in parts] == list(np.diff(bounds))
    assert_same(concatenate(parts), whole)


def test_a_slice_is_in_prompt_coordinates_and_copies_nothing() -> None:
    whole = rows_of(6)
    part = whole.slice(5, 8)
    assert (part.first_row, part.end_row, len(part)) == (5, 8, 3)
    np.testing.assert_array_equal(part.entropies, [5, 6, 7])
    assert all(
        np.shares_memory(getattr(part, name), getattr(whole, name))
        for name in ("token_ids", "log_probs", "prompt_log_probs", "tail_log_probs", "entropies")
    )


@pytest.mark.parametrize(("first", "end"), [(2, 4), (8, 10), (7, 6)])
def test_rows_that_are_not_there_cannot_be_cut_out(first: int, end: int) -> None:
    with pytest.raises(IndexError, match=r"are not within \[3, 9\)"):
        rows_of(6).slice(first, end)


@pytest.mark.parametrize(("second", "expected"), [(6, 5), (4, 5), (3, 5)])
def test_parts_that_leave_a_gap_or_overlap_are_refused(second: int, expected: int) -> None:
    message = f"prompt 5 must be tiled exactly once: expected row {expected}, got {second}"
    with pytest.raises(TilingError, match=message):
        concatenate([rows_of(2), rows_of(2, first_row=second)])


@pytest.mark.parametrize("name", OPTIONAL)
def test_parts_of_which_some_lack_an_array_are_refused_by_its_name(name: str) -> None:
    parts = [rows_of(2, drawn=True), replace(rows_of(2, first_row=5, drawn=True), **{name: None})]
    with pytest.raises(ValueError, match=f"some parts of prompt 5 have {name} and others have"):
        concatenate(parts)


@pytest.mark.parametrize("name", OPTIONAL)
def test_rows_without_an_array_are_cut_and_joined_like_others(name: str) -> None:
    whole = replace(rows_of(6, drawn=True), **{name: None})
    assert name not in whole.arrays()
    assert_same(concatenate([whole.slice(3, 5), whole.slice(5, 9)]), whole)


def test_scored_rows_are_the_same_rows_and_stay_scored_ones() -> None:
    for drawn in (False, True):
        scored = as_scored(rows_of(6, drawn=drawn))
        assert_same(scored, rows_of(6, drawn=drawn))
        assert isinstance(concatenate([scored.slice(3, 5), scored.slice(5, 9)]), ScoredRows)


def test_rows_that_lack_what_a_service_always_sends_are_no_scored_ones() -> None:
    for name in set(OPTIONAL) - {"draw_weights"}:
        with pytest.raises(ValueError, match=f"rows of prompt 5 without {name}"):
            as_scored(replace(rows_of(2), **{name: None}))


def test_joined_rows_are_the_most_probable_only_where_all_parts_are() -> None:
    parts = [rows_of(2), rows_of(2, first_row=5, most_probable=False)]
    assert not concatenate(parts).most_probable
    assert concatenate(parts[:1]).most_probable


def test_the_bytes_of_rows_are_those_of_their_arrays() -> None:
    # 2 rows of 2 tokens: ids, log-probs and draw weights, and three numbers a row, of 4 bytes.
    assert rows_of(2).byte_count == 4 * (2 * 4 + 3 * 2)
    assert rows_of(2, drawn=True).byte_count == 4 * (3 * 4 + 3 * 2)
