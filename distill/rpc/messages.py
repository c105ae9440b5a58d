"""Plain values to messages by the names of their fields.

A field then stands in two places: in the proto, and where its value is computed or made.
"""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from distill.tensors import encode_floats, encode_int32

MessageT = TypeVar("MessageT", bound=Message)

_MISSING = object()


def message_from(kind: type[MessageT], *sources: object, **given: object) -> MessageT:
    """A message whose fields are the attributes of the same names.

    An array becomes a tensor; every other value is taken as it is. None leaves a field out.

    Args:
        kind: the message's type.
        sources: the first of them that has an attribute of a field's name gives its value.
        given: fields that no source has, or that shall have another value than a source's.

    Raises:
        TypeError: a field has no value, not even None: somebody forgot it.
    """
    values = dict(given)
    for name in kind.DESCRIPTOR.fields_by_name:
        if name not in values:
            values[name] = _attribute(sources, name, kind)
    return kind(**{name: _as_tensor(value) for name, value in values.items()})


def _attribute(sources: Iterable[object], name: str, kind: type[Message]) -> object:
    for source in sources:
        # One look at each attribute: some are properties that take a lock.
        value = getattr(source, name, _MISSING)
        if value is not _MISSING:
            return value
    raise TypeError(f"{kind.DESCRIPTOR.name}.{name} is given by nobody")


def _as_tensor(value: object) -> object:
    if not isinstance(value, np.ndarray):
        return value
    return encode_int32(value) if value.dtype == np.int32 else encode_floats(value)
