"""Values of the contract's enums by the names that people write: "tail_bucket".

A value's name in the proto is that of its enum and its own, as OBJECTIVE_TAIL_BUCKET is. The value
0 is UNSPECIFIED everywhere and has no name here.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    # The type of `training_pb2.Objective` and its like, which exists in the stubs alone.
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

Value = TypeVar("Value", bound=int)


def enum_names(enum: "_EnumTypeWrapper[Value]") -> tuple[str, ...]:
    """The names of all values but UNSPECIFIED, in the order of the proto.

    >>> from distill.v1 import training_pb2
    >>> enum_names(training_pb2.Reduction)
    ('sum', 'sequence_mean')
    """
    return tuple(_values(enum))


def enum_value(enum: "_EnumTypeWrapper[Value]", name: str, field: str) -> Value:
    """The value of a name.

    Args:
        enum: whose value.
        name: as `enum_names` has it.
        field: what the name was given for, for the error.

    Raises:
        ValueError: no such name; lists those there are.
    """
    values = _values(enum)
    if name not in values:
        raise ValueError(f"{field}: must be one of {', '.join(values)}, got {name!r}")
    return values[name]


def enum_name(enum: "_EnumTypeWrapper[Value]", value: int) -> str:
    """The name of a value.

    Raises:
        ValueError: no such value, or UNSPECIFIED.
    """
    for name, known in _values(enum).items():
        if known == value:
            return name
    raise ValueError(f"{enum.DESCRIPTOR.name} has no value {value}")


def _values(enum: "_EnumTypeWrapper[Value]") -> dict[str, Value]:
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    named = ((name, value) for name, value in enum.items() if value)
    return {name.removeprefix(prefix).lower(): value for name, value in named}
