"""Checks that several requests share. A message names the field, what is allowed and what came.

The value shown is the request's own number; token ids are never listed beyond the first bad one.
"""

import math
from collections.abc import Sequence

import numpy as np

from distill.arrays import Int32Array
from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.tensors import decode_int32
from distill.v1 import tensor_pb2

MIN_TEMPERATURE = float(np.float32(1e-6))
"""Below it, logits divided by the temperature leave the range of float32. Rounded to float32 as on
the wire, so that a caller's 1e-6 passes."""


def check_range(field: str, value: int, low: int, high: int) -> None:
    """Raise InvalidFieldError unless low <= value <= high."""
    if not low <= value <= high:
        raise InvalidFieldError(field, f"must be in [{low}, {high}], got {value}")


def check_limit(field: str, value: int, limit: int) -> None:
    """Raise LimitExceededError unless value <= limit."""
    if value > limit:
        raise LimitExceededError(field, limit, value)


def check_temperature(field: str, value: float) -> None:
    """Raise InvalidFieldError unless the value can divide logits."""
    if not math.isfinite(value) or value < MIN_TEMPERATURE:
        raise InvalidFieldError(
            field, f"must be finite and at least {MIN_TEMPERATURE:g}, got {value}"
        )


def parse_token_ids(
    tensor: tensor_pb2.Int32Tensor, field: str, *, vocab_size: int, max_length: int
) -> Int32Array:
    """Parse a sequence of token ids [T] with 1 <= T <= max_length.

    Raises:
        InvalidFieldError: wrong shape, no token, or an id outside [0, vocab_size).
        LimitExceededError: more than `max_length` tokens.
    """
    token_ids = decode_int32(tensor, field, (1,))
    if not len(token_ids):
        raise InvalidFieldError(field, "must have at least 1 token, got 0")
    check_limit(field, len(token_ids), max_length)
    # JAX would clamp an id outside of the range and compute something else without a word.
    outside = np.flatnonzero((token_ids < 0) | (token_ids >= vocab_size))
    if len(outside):
        first = int(outside[0])
        raise InvalidFieldError(
            f"{field}.values[{first}]",
            f"must be in [0, {vocab_size}), got {int(token_ids[first])}",
        )
    return token_ids


def check_token_ids(field: str, token_ids: Int32Array, vocab_size: int) -> None:
    """Raise InvalidFieldError unless every id is in [0, V): JAX would clamp it without a word."""
    outside = (token_ids < 0) | (token_ids >= vocab_size)
    if outside.any():
        raise InvalidFieldError(
            field, f"must be in [0, {vocab_size}), got {int(token_ids[outside].flat[0])}"
        )


def check_request_size(field: str, sequences: Sequence[object], limits: RequestLimits) -> None:
    """Check the number of sequences before any of them is parsed.

    Raises:
        InvalidFieldError: there is no sequence.
        LimitExceededError: more than the service accepts.
    """
    if not sequences:
        raise InvalidFieldError(field, "must not be empty")
    check_limit(field, len(sequences), limits.max_sequences)


def check_distinct(field: str, token_ids: Int32Array) -> None:
    """Raises InvalidFieldError where a row names a token twice; [R, K]."""
    ordered = np.sort(token_ids, axis=-1)
    repeated = ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]]
    if len(repeated):
        raise InvalidFieldError(
            field, f"a row must not name a token twice, got {int(repeated[0])} again"
        )
