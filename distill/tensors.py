"""Wire tensors to NumPy and back.

The only place that reads or writes `FloatTensor` and `Int32Tensor`. Knows no JAX, for the client
uses it too.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from distill.errors import InvalidFieldError
from distill.v1 import tensor_pb2

FloatArray = NDArray[np.float32]
Int32Array = NDArray[np.int32]


def encode_floats(array: NDArray[np.floating]) -> tensor_pb2.FloatTensor:
    """Encode an array of any rank as float32, row-major."""
    flat = np.ascontiguousarray(array, dtype=np.float32)
    # ravel().tolist() parses faster than an ndarray, whose items arrive as NumPy scalars.
    return tensor_pb2.FloatTensor(shape=array.shape, values=flat.ravel().tolist())


def encode_int32(array: NDArray[np.integer]) -> tensor_pb2.Int32Tensor:
    """Encode an array of any rank as int32, row-major."""
    flat = np.ascontiguousarray(array, dtype=np.int32)
    return tensor_pb2.Int32Tensor(shape=array.shape, values=flat.ravel().tolist())


def decode_floats(tensor: tensor_pb2.FloatTensor, field: str, ranks: tuple[int, ...]) -> FloatArray:
    """Decode to a float32 array. Values may be anything, NaN included.

    Args:
        tensor: the message.
        field: its name in the request, for the error.
        ranks: the allowed numbers of dimensions.

    Raises:
        InvalidFieldError: wrong rank, a negative dimension, or a shape that does not match the
            number of values.
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
    shape = tuple(int(extent) for extent in shape_field)
    if len(shape) not in ranks:
        allowed = " or ".join(str(rank) for rank in ranks)
        raise InvalidFieldError(
            f"{field}.shape", f"must have {allowed} dimensions, got {len(shape)}: {list(shape)}"
        )
    # Before the product: numpy's reshape would read -1 as a wildcard.
    for extent in shape:
        if extent < 0:
            raise InvalidFieldError(f"{field}.shape", f"must not be negative, got {list(shape)}")
    # math.prod has no overflow: Python integers.
    if math.prod(shape) != value_count:
        raise InvalidFieldError(
            f"{field}.shape",
            f"its product must be the number of values {value_count}, got {list(shape)}",
        )
    return shape
