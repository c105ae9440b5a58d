"""Wire tensors to NumPy and back.

The only place that reads or writes `FloatTensor` and `Int32Tensor`. It imports no JAX, because the
client uses it too.

NumPy writes the values as they lie in memory, and reads them by one copy: a hundred times as fast
as through a Python object per value.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from distill.arrays import FloatArray, Int32Array
from distill.errors import InvalidFieldError
from distill.v1 import tensor_pb2
from distill.wire_format import payload_header, varint

_WIRE_FLOAT: Final[np.dtype[np.float32]] = np.dtype("<f4")
_WIRE_INT32: Final[np.dtype[np.int32]] = np.dtype("<i4")

# Both messages have the same layout: packed varints, then packed values of four bytes.
_SHAPE_NUMBER = tensor_pb2.FloatTensor.SHAPE_FIELD_NUMBER
_VALUES_NUMBER = tensor_pb2.FloatTensor.VALUES_FIELD_NUMBER
_VALUE_BYTES = 4

_MAX_EXTENT = 2**31 - 1
"""Largest dimension. A shape with a 0 in it has no values whatever its other dimensions are, and
NumPy makes no array with one of 2^62."""


def encode_floats(array: NDArray[np.floating]) -> tensor_pb2.FloatTensor:
    """Encode an array of any rank as float32, row-major."""
    values = np.asarray(array, _WIRE_FLOAT, order="C")
    return tensor_pb2.FloatTensor.FromString(b"".join((_tensor_header(values.shape), values.data)))


def encode_int32(array: NDArray[np.integer]) -> tensor_pb2.Int32Tensor:
    """Encode an array of any rank as int32, row-major."""
    values = np.asarray(array, _WIRE_INT32, order="C")
    return tensor_pb2.Int32Tensor.FromString(b"".join((_tensor_header(values.shape), values.data)))


def float_field(number: int, array: NDArray[np.floating]) -> tuple[bytes, memoryview]:
    """A field of type `FloatTensor`, for a message that is written as bytes.

    Args:
        number: of the field in its message.
        array: of any rank.

    Returns:
        The header and the values, for one `b"".join` with the pieces of the other fields: that
        copies the values once.
    """
    values = np.asarray(array, _WIRE_FLOAT, order="C")
    return _field_header(number, values.shape), values.data


def int32_field(number: int, array: NDArray[np.integer]) -> tuple[bytes, memoryview]:
    """A field of type `Int32Tensor`. Arguments and result are those of `float_field`."""
    values = np.asarray(array, _WIRE_INT32, order="C")
    return _field_header(number, values.shape), values.data


# Cached, because the chunks of a stream have few shapes and a header in Python takes as long as
# copying the values.
@lru_cache(maxsize=1024)
def _field_header(number: int, shape: tuple[int, ...]) -> bytes:
    header = _tensor_header(shape)
    return payload_header(number, len(header) + math.prod(shape) * _VALUE_BYTES) + header


@lru_cache(maxsize=1024)
def _tensor_header(shape: tuple[int, ...]) -> bytes:
    """Everything of a tensor message but the values. Empty lists are left out, as by protobuf."""
    header = b""
    if shape:
        extents = b"".join(map(varint, shape))
        header += payload_header(_SHAPE_NUMBER, len(extents)) + extents
    value_count = math.prod(shape)
    if value_count:
        header += payload_header(_VALUES_NUMBER, value_count * _VALUE_BYTES)
    return header


def decode_floats(tensor: tensor_pb2.FloatTensor, field: str, ranks: tuple[int, ...]) -> FloatArray:
    """Decode to a float32 array. Values may be anything, NaN included.

    Args:
        tensor: the message.
        field: its name in the request, for the error.
        ranks: the allowed numbers of dimensions.

    Raises:
        InvalidFieldError: wrong rank, a dimension below 0 or above 2^31 - 1, or a shape that does
            not match the number of values.
    """
    shape = _checked_shape(tensor.shape, len(tensor.values), field, ranks)
    return np.asarray(tensor.values, dtype=np.float32).reshape(shape)


def decode_int32(tensor: tensor_pb2.Int32Tensor, field: str, ranks: tuple[int, ...]) -> Int32Array:
    """Decode to an int32 array. Arguments and errors are those of `decode_floats`."""
    shape = _checked_shape(tensor.shape, len(tensor.values), field, ranks)
    return np.asarray(tensor.values, dtype=np.int32).reshape(shape)


def _checked_shape(
    shape_field: Iterable[int],
    value_count: int,
    field: str,
    ranks: tuple[int, ...],
) -> tuple[int, ...]:
    shape = tuple(shape_field)
    if len(shape) not in ranks:
        allowed = " or ".join(str(rank) for rank in ranks)
        raise InvalidFieldError(
            f"{field}.shape", f"must have {allowed} dimensions, got {len(shape)}: {list(shape)}"
        )
    # Before the product: numpy's reshape would read -1 as a wildcard.
    if min(shape, default=0) < 0:
        raise InvalidFieldError(f"{field}.shape", f"must not be negative, got {list(shape)}")
    # math.prod has no overflow: Python integers.
    if math.prod(shape) != value_count:
        raise InvalidFieldError(
            f"{field}.shape",
            f"its product must be the number of values {value_count}, got {list(shape)}",
        )
    if max(shape, default=0) > _MAX_EXTENT:
        raise InvalidFieldError(
            f"{field}.shape", f"must be at most {_MAX_EXTENT} each, got {list(shape)}"
        )
    return shape
