"""Which layers stay."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError
from distill.models.layer_choice import check_layers, middle_cut, parse_layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0-2,7-9", (0, 1, 2, 7, 8, 9)),
        ("9,0,4", (0, 4, 9)),
        (" 1 - 3 , 5 ", (1, 2, 3, 5)),
        ("4-4", (4,)),
        ("4,", None),
        ("4", (0, 1, 8, 9)),
        ("10", tuple(range(10))),
    ],
)
def test_layers_are_ranges_with_both_ends_and_a_number_alone_is_a_count(text, layers):
    if layers is None:
        with pytest.raises(InvalidFieldError, match="must be a count, or layers"):
            parse_layers(text, 10)
    else:
        assert parse_layers(text, 10) == layers


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"must be a count, or layers such as 0-6,22-29; got ''"),
        ("a-b", "got 'a-b'"),
        ("-3", "got '-3'"),
        ("1,2,1.5", r"got '1\.5' in '1,2,1\.5'"),
        ("0", r"must be in \[1, 10\], for the model has 10 layers; got 0"),
        ("11", r"must be in \[1, 10\], for the model has 10 layers; got 11"),
        ("0-10", r"must be in \[0, 9\], for the model has 10 layers; got 10"),
        ("0-99999999999", "got 99999999999"),
        ("3,10", "got 10"),
        ("0-4,4-6", "names layer 4 twice"),
        ("2,2", "names layer 2 twice"),
        ("6-4", "the range 6-4 is empty"),
    ],
)
def test_layers_that_cannot_stay_are_refused_by_name(text, problem):
    with pytest.raises(InvalidFieldError, match=rf"^keep_layers: .*{problem}"):
        parse_layers(text, 10)


def test_no_layer_and_layers_out_of_order_are_refused():
    with pytest.raises(InvalidFieldError, match="got none"):
        check_layers([], 10)
    with pytest.raises(InvalidFieldError, match="must ascend, got 3 after 5"):
        check_layers([5, 3], 10)
    with pytest.raises(InvalidFieldError, match="got -1"):
        check_layers([-1, 3], 10)


@given(st.integers(1, 130).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))))
def test_a_count_leaves_out_one_block_with_a_third_of_what_stays_before_it(case):
    count, total = case
    layers = middle_cut(count, total)
    check_layers(layers, total)
    assert len(layers) == count
    before = math.ceil(count / 3)
    assert layers[:before] == tuple(range(before))
    assert layers[before:] == tuple(range(total))[total - (count - before) :]
