"""Top-K rows to the bytes of a `TopKChunk`, and from a received one.

`Rows` has the message's field names, so that nothing here lists them.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from distill.errors import InvalidFieldError
from distill.rows import ARRAY_RANKS, Rows
from distill.tensors import decode_floats, decode_int32, float_field, int32_field
from distill.v1 import scoring_pb2
from distill.wire_format import int_field


class _Tensor(NamedTuple):
    """How a field that is a tensor is written and read."""

    write: Callable[[int, Any], tuple[bytes, memoryview]]
    read: Callable[[Any, str, tuple[int, ...]], Any]


class _Field(NamedTuple):
    name: str
    number: int
    tensor: _Tensor | None
    """None: a number or a bool."""


_TENSORS = {
    "FloatTensor": _Tensor(float_field, decode_floats),
    "Int32Tensor": _Tensor(int32_field, decode_int32),
}

# Looked up once: asking the descriptors for every chunk takes as long as copying its values.
_FIELDS = tuple(
    _Field(
        each.name,
        each.number,
        None if each.message_type is None else _TENSORS[each.message_type.name],
    )
    for each in sorted(scoring_pb2.TopKChunk.DESCRIPTOR.fields, key=lambda each: each.number)
)
_OPTIONAL = {each.name for each in fields(Rows) if each.default is None}


def rows_to_bytes(rows: Rows) -> bytes:
    """A `TopKChunk` as protobuf would write it: its fields by ascending number.

    For `MergeFromString` of a response's `chunk`. A message that is given to the constructor of
    another one is copied; this way the arrays are not.
    """
    pieces: list[bytes | memoryview] = []
    for name, number, tensor in _FIELDS:
        value = getattr(rows, name)
        if tensor is None:
            pieces.append(int_field(number, value))
        elif value is not None:
            pieces += tensor.write(number, value)
    return b"".join(pieces)


def rows_from_message(chunk: scoring_pb2.TopKChunk, field: str) -> Rows:
    """The rows of a chunk, whose arrays describe the same R rows and K tokens. Those that are
    optional may be absent; values may be anything, NaN included.

    Args:
        chunk: the message.
        field: its name in the request or response, for the error.

    Raises:
        InvalidFieldError: an array of a wrong rank, or of another shape than the token ids'.
    """
    values: dict[str, Any] = {}
    for name, _, tensor in _FIELDS:
        if tensor is None:
            values[name] = getattr(chunk, name)
        elif name not in _OPTIONAL or chunk.HasField(name):  # type: ignore[arg-type] # its own
            values[name] = tensor.read(
                getattr(chunk, name), f"{field}.{name}", (ARRAY_RANKS[name],)
            )
    shape = values["token_ids"].shape
    for name, rank in ARRAY_RANKS.items():
        if name in values and values[name].shape != shape[:rank]:
            raise InvalidFieldError(
                f"{field}.{name}.shape",
                f"must be {list(shape[:rank])} with token ids of shape {list(shape)}, "
                f"got {list(values[name].shape)}",
            )
    return Rows(**values)
