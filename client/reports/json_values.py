"""Settings and messages as values that JSON can hold."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def json_value(value: Any) -> Any:
    """A dataclass or a message, and all within it, as dicts by field name; else the value itself.

    A field of a message that may be absent and is so is None. Integers stay integers: protobuf's
    own JSON writes those of 64 bits as strings.
    """
    if isinstance(value, Message):
        return {each.name: _field_value(value, each) for each in value.DESCRIPTOR.fields}
    if is_dataclass(value):
        return {each.name: json_value(getattr(value, each.name)) for each in fields(value)}
    return value


def shortest_float(value: float) -> float:
    """The number that a person wrote into a float32 field: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(value)))


def _field_value(message: Message, field: Any) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.is_repeated:
        return [json_value(each) for each in value]
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return shortest_float(value)
    return json_value(value)
