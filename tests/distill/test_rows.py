"""Rows: cutting and joining lose nothing, and parts that do not tile are refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.rows import ARRAY_RANKS, Rows, TilingError, concatenate


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


def test_parts_of_which_some_have_draw_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="some parts of prompt 5 have draw weights"):
        concatenate([rows_of(2, drawn=True), rows_of(2, first_row=5)])


def test_joined_rows_are_the_most_probable_only_where_all_parts_are() -> None:
    parts = [rows_of(2), rows_of(2, first_row=5, most_probable=False)]
    assert not concatenate(parts).most_probable
    assert concatenate(parts[:1]).most_probable


def test_the_bytes_of_rows_are_those_of_their_arrays() -> None:
    # 2 rows of 2 tokens: ids, log-probs and draw weights, and three numbers a row, of 4 bytes.
    assert rows_of(2).byte_count == 4 * (2 * 4 + 3 * 2)
    assert rows_of(2, drawn=True).byte_count == 4 * (3 * 4 + 3 * 2)
