"""Names of enum values: those of the proto without the enum's own, in lower case."""

import pytest

from distill.enum_names import enum_name, enum_names, enum_value
from distill.v1 import scoring_pb2, training_pb2

ENUMS = (
    training_pb2.Objective,
    training_pb2.Reduction,
    training_pb2.GradientNormalization,
    scoring_pb2.StopReason,
)


@pytest.mark.parametrize("enum", ENUMS)
def test_every_value_but_unspecified_has_a_name_of_its_own(enum) -> None:
    names = enum_names(enum)
    assert [enum_value(enum, name, "field") for name in names] == [
        value for value in enum.values() if value != 0
    ]
    assert [enum_name(enum, enum_value(enum, name, "field")) for name in names] == list(names)
    assert not any("unspecified" in name for name in names)


def test_what_has_no_name_is_refused() -> None:
    assert enum_names(training_pb2.GradientNormalization) == ("none", "rows", "examples")
    with pytest.raises(ValueError, match=r"normalization: must be one of none, rows, examples"):
        enum_value(training_pb2.GradientNormalization, "unspecified", "normalization")
    for value in (0, 99):
        with pytest.raises(ValueError, match=f"StopReason has no value {value}"):
            enum_name(scoring_pb2.StopReason, value)
