"""Plain values to messages by the names of their fields.

A field then stands in two places: in the proto, and where its value is computed or made.
"""

from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from distill.tensors import encode_floats, encode_int32

MessageT = TypeVar("MessageT", bound=Message)


def message_from(kind: type[MessageT], *sources: object, **given: object) -> MessageT:
    """A message whose fields are the attributes of the same names.

    Numbers, strings and lists are taken as they are, arrays as tensors; None leaves a field out.
    Messages within the message are the caller's to give.

    Args:
        kind: the message's type.
        sources: searched in order for an attribute of each field's name.
        given: fields that no source has, or has otherwise.

    Raises:
        TypeError: a number, string or list of the message is nowhere: somebody forgot it.
    """
    values = dict(given)
    for field in kind.DESCRIPTOR.fields:
        if field.name in values:
            continue
        found = [getattr(source, field.name) for source in sources if hasattr(source, field.name)]
        if found:
            values[field.name] = found[0]
        elif field.message_type is None:
            raise TypeError(f"{kind.DESCRIPTOR.name}.{field.name} is given by nobody")
    return kind(**{name: _as_tensor(value) for name, value in values.items()})


def _as_tensor(value: object) -> object:
    if not isinstance(value, np.ndarray):
        return value
    return encode_int32(value) if value.dtype == np.int32 else encode_floats(value)
