"""Top-K rows to the bytes of a `TopKChunk`, and from a received one.

`Rows` has the message's field names, so that nothing here lists them.
"""

from typing import Any

from distill.errors import InvalidFieldError
from distill.rows import ARRAY_RANKS, Rows
from distill.tensors import decode_floats, decode_int32, float_field, int32_field
from distill.v1 import scoring_pb2
from distill.wire_format import int_field

_FIELDS = sorted(scoring_pb2.TopKChunk.DESCRIPTOR.fields, key=lambda each: each.number)
_FLOAT_TENSOR = "FloatTensor"


def rows_to_bytes(rows: Rows) -> bytes:
    """A `TopKChunk` as protobuf would write it: its fields by ascending number.

    For `MergeFromString` of a response's `chunk`. A message that is given to the constructor of
    another one is copied; this way the arrays are not.
    """
    pieces: list[bytes | memoryview] = []
    for each in _FIELDS:
        value = getattr(rows, each.name)
        if each.message_type is None:
            pieces.append(int_field(each.number, value))
        elif value is not None:
            is_float = each.message_type.name == _FLOAT_TENSOR
            pieces += (float_field if is_float else int32_field)(each.number, value)
    return b"".join(pieces)


def rows_from_message(chunk: scoring_pb2.TopKChunk, field: str) -> Rows:
    """The rows of a chunk, whose arrays describe the same R rows and K tokens. Values may be
    anything, NaN included.

    Args:
        chunk: the message.
        field: its name in the request or response, for the error.

    Raises:
        InvalidFieldError: an array of a wrong rank, or of another shape than the token ids'.
    """
    values: dict[str, Any] = {}
    for each in _FIELDS:
        if each.message_type is None:
            values[each.name] = getattr(chunk, each.name)
        elif each.name != "draw_weights" or chunk.HasField("draw_weights"):
            is_float = each.message_type.name == _FLOAT_TENSOR
            decode: Any = decode_floats if is_float else decode_int32
            values[each.name] = decode(
                getattr(chunk, each.name), f"{field}.{each.name}", (ARRAY_RANKS[each.name],)
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
