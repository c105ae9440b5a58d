"""Digests: the same for the same meaning, and for no two values that differ."""

from dataclasses import dataclass, make_dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from student_service.edge.digests import encoded, request_digest, value_digest

# Few and short, so that two different values often have the same content one after the other.
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 11)
    | st.sampled_from([0.0, 1.0, 11.0])
    | st.text("n1", max_size=3)
    | st.binary(max_size=2)
    | st.builds(
        lambda shape, kind: np.ones(shape, kind),
        st.lists(st.integers(0, 3), max_size=2),
        st.sampled_from(["float32", "float64", "int32", "uint8", "bool"]),
    )
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("n1", max_size=2), inner, max_size=2)
    ),
    max_leaves=6,
)


def described(value):
    """The value so that Python tells it from every other one: `True == 1 == 1.0`, and arrays have
    no equality of their own."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, tuple):
        return ("tuple", *(described(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, described(item)) for key, item in value.items()))
    return (type(value).__name__, value)


@given(values, values)
def test_no_two_values_have_the_same_digest(first, second):
    same = described(first) == described(second)
    assert (value_digest(first) == value_digest(second)) == same


@given(values, values)
def test_no_encoding_is_the_beginning_of_another_one(first, second):
    """So values in a row are told apart, whatever they are."""
    if described(first) != described(second):
        one, other = b"".join(encoded(first)), b"".join(encoded(second))
        assert not one.startswith(other)
        assert not other.startswith(one)


@given(
    # The letters of texts and bytes, so that content can look like the start of an item.
    content=st.text("sy", min_size=3, max_size=6),
    cuts=st.lists(
        st.sets(st.integers(1, 5), min_size=1, max_size=2).map(sorted), min_size=2, max_size=2
    ),
    split=st.sampled_from([str, str.encode, lambda part: tuple(part)]),
)
def test_a_text_cut_elsewhere_is_another_value(content, cuts, split):
    first, second = (
        tuple(
            split(content[start:end])
            for start, end in zip([0, *places], [*places, len(content)], strict=True)
        )
        for places in cuts
    )
    assert (value_digest(first) == value_digest(second)) == (first == second)


@given(values)
def test_the_digest_of_a_value_is_that_of_its_copy_in_any_order_of_keys(value):
    def reversed_keys(value):
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(list(value))}
        if isinstance(value, tuple):
            return [reversed_keys(item) for item in value]
        return value

    assert value_digest(reversed_keys(value)) == value_digest(value)


def test_digest_is_the_same_in_every_process():
    """The hashes of Python's strings and sets are other ones in each."""
    value = {"one": (1, 2.5, None, True), "two": np.arange(3, dtype=np.int32), "three": b"x"}
    assert (
        value_digest(value).hex()
        == "e55cc86de325a289d2702afc8a7f5298f0227231c92613456dde3bad08241bdb"
    )


def test_arrays_are_what_they_hold_and_not_how_they_lie_in_memory():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for same in (array.copy(order="F"), array[:, ::-1][:, ::-1], array.astype(">f4")):
        assert value_digest(same) == value_digest(array)
    for other in (
        array.T,
        array.ravel(),
        array.astype(np.float64),
        array.view(np.int32),
        array[:0],
    ):
        assert value_digest(other) != value_digest(array)
    assert value_digest(np.float32(1)) != value_digest(np.float32(2))


@dataclass(frozen=True)
class Settings:
    first: int = 1
    second: float = 2.0


def test_dataclasses_are_told_apart_by_type_field_and_value():
    known = value_digest(Settings())
    assert value_digest(Settings(1, 2.0)) == known
    swapped = make_dataclass("Settings", [("second", float, 2.0), ("first", int, 1)])
    assert value_digest(swapped()) == known
    renamed = make_dataclass("Settings", [("first", int, 1), ("third", float, 2.0)])
    for other in (
        Settings(first=2),
        Settings(second=1.0),
        renamed(),
        make_dataclass("Others", [("first", int, 1), ("second", float, 2.0)])(),
        {"first": 1, "second": 2.0},
    ):
        assert value_digest(other) != known


def test_requests_are_told_apart_by_operation_and_values():
    known = request_digest("OptimStep", Settings(), "rows")
    assert request_digest("OptimStep", Settings(), "rows") == known
    for other in (
        request_digest("SaveCheckpoint", Settings(), "rows"),
        request_digest("OptimStep", Settings(), "none"),
        request_digest("OptimStep", (Settings(), "rows")),
        request_digest("OptimStep", Settings()),
    ):
        assert other != known


@pytest.mark.parametrize("value", [object(), {1, 2}, Settings, np.array(["text"]), np.array([{}])])
def test_what_has_no_stable_content_has_no_digest(value):
    with pytest.raises(TypeError, match="has no digest"):
        value_digest((value,))
