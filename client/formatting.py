"""What callers have, in Python and NumPy, to tensor messages."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.tensors import encode_floats, encode_int32
from distill.v1 import tensor_pb2

Tokens: TypeAlias = Sequence[int] | NDArray[np.integer]
"""Token ids of one sequence, [T]."""


def format_tokens(tokens: Tokens, field: str) -> tensor_pb2.Int32Tensor:
    """The message of the token ids of one sequence, [T].

    Raises:
        ValueError: not one-dimensional, not integers, or beyond int32; names the field.
    """
    return format_integers(tokens, field, ranks=(1,))


def format_integers(
    values: ArrayLike, field: str, *, ranks: tuple[int, ...]
) -> tensor_pb2.Int32Tensor:
    """The message of an array of integers.

    Args:
        values: the array, or nested lists.
        field: its name, for the error.
        ranks: the allowed numbers of dimensions.

    Raises:
        ValueError: of another rank, not integers, or beyond int32; names the field.
    """
    array = np.asarray(values)
    if array.ndim not in ranks:
        allowed = " or ".join(str(rank) for rank in ranks)
        raise ValueError(f"{field}: must have {allowed} dimensions, got shape {array.shape}")
    if array.size == 0:
        return tensor_pb2.Int32Tensor(shape=array.shape)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{field}: must hold integers, got {array.dtype}")
    # A cast to int32 would wrap around to a token id that looks right.
    bounds = np.iinfo(np.int32)
    if array.min() < bounds.min or array.max() > bounds.max:
        raise ValueError(f"{field}: must fit in int32, got {array.min()} to {array.max()}")
    return encode_int32(array)


def format_floats(values: ArrayLike | None) -> tensor_pb2.FloatTensor | None:
    """The message of an array of floats; None where there is no array."""
    return None if values is None else encode_floats(np.asarray(values))
