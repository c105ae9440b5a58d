"""Safetensors files as streams, and read from open files. Knows no JAX.

A stream holds one tensor in memory at a time.

The format (https://github.com/huggingface/safetensors): the length of the header in 8 bytes,
little-endian; the header, JSON padded with spaces to a multiple of 8, which gives each tensor's
type, shape and place; then the tensors' values, without gaps. The bytes are those that the library
writes, which puts larger types first, so that every value is aligned in a file that is mapped into
memory.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.files import parse_json_object
from distill.models.export_file import ExportFile, cut

MAX_HEADER_BYTES = 100_000_000
"""The library's bound: it reads no longer header."""

_LENGTH_BYTES = 8
_ALIGNMENT = 8

# From the first in a file to the last.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PLACES = {name: place for place, name in enumerate(_DTYPES)}


@dataclass(frozen=True, kw_only=True)
class UnreadTensor:
    """A tensor to be written, which is not in memory yet."""

    name: str
    """In the file."""

    dtype: np.dtype[Any]
    """Of the stored values."""

    shape: tuple[int, ...]
    """Of the stored tensor."""

    read: Callable[[], NDArray[Any]]
    """Gives the tensor, of this type and shape."""

    @property
    def byte_count(self) -> int:
        """Size of its values in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def unread(name: str, array: NDArray[Any]) -> UnreadTensor:
    """An array in memory, to be written under a name."""
    return UnreadTensor(name=name, dtype=array.dtype, shape=array.shape, read=lambda: array)


def stored_dtype(name: str) -> np.dtype[Any]:
    """The type that a file calls so: "F32", "BF16".

    Raises:
        ValueError: no type of NumPy's, or of those that this module writes.
    """
    if name not in _DTYPES:
        raise ValueError(f"type {name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def safetensors_file(
    name: str, tensors: Sequence[UnreadTensor], metadata: Mapping[str, str] | None = None
) -> ExportFile:
    """A file of tensors, each of which is read when its turn comes.

    Args:
        name: of the file.
        tensors: in any order.
        metadata: texts for the file's readers.

    Raises:
        ValueError: a name twice, or a type that the format has not; while the pieces are read, a
            tensor that is not what was announced of it.
    """
    for tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{tensor.name}: the format has no type {tensor.dtype}")
    ordered = sorted(tensors, key=lambda each: (_PLACES[_NAMES[each.dtype]], each.name))
    header = _header(ordered, metadata)
    return ExportFile(
        name=name,
        byte_count=len(header) + sum(tensor.byte_count for tensor in tensors),
        pieces=_pieces(header, ordered),
    )


def _pieces(header: bytes, tensors: Sequence[UnreadTensor]) -> Iterator[bytes]:
    yield from cut(memoryview(header))
    for tensor in tensors:
        values = _checked(tensor)
        yield from cut(values.reshape(-1).view(np.uint8).data)
        # Or else it would be in memory while the next one is read.
        del values


def _header(tensors: Sequence[UnreadTensor], metadata: Mapping[str, str] | None) -> bytes:
    described: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        if tensor.name in described:
            raise ValueError(f"the name {tensor.name!r} is given twice")
        described[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.byte_count],
        }
        offset += tensor.byte_count
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _checked(tensor: UnreadTensor) -> NDArray[Any]:
    # Not `ascontiguousarray`, which gives a scalar an axis.
    values: NDArray[Any] = np.asarray(tensor.read(), order="C")
    # The header, with the places of all tensors, has been sent already.
    if (values.dtype, values.shape) != (tensor.dtype, tensor.shape):
        raise ValueError(
            f"{tensor.name}: announced as {tensor.dtype} {list(tensor.shape)}, "
            f"read as {values.dtype} {list(values.shape)}"
        )
    return values


def read_safetensors(file: BufferedReader) -> dict[str, NDArray[Any]]:
    """The arrays of an open file. (The library opens files by their paths alone.)

    Raises:
        ValueError: it is no such file; says why.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header_bytes > min(MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES):
        raise ValueError(f"it cannot have a header of {header_bytes} bytes")
    header = parse_json_object(file.read(header_bytes))
    header.pop("__metadata__", None)
    places = {name: _place(name, described) for name, described in header.items()}
    arrays = {}
    offset = 0
    for name, (begin, dtype, shape) in sorted(places.items(), key=lambda item: item[1][0]):
        byte_count = math.prod(shape) * dtype.itemsize
        # Checked before memory is taken: no array is larger than what the file still holds.
        if begin != offset or _LENGTH_BYTES + header_bytes + offset + byte_count > file_bytes:
            raise ValueError(f"{name} has no place of its own in the file")
        arrays[name] = np.empty(shape, dtype)
        if file.readinto(arrays[name].reshape(-1).view(np.uint8).data) != byte_count:
            raise ValueError(f"{name} is cut short")
        offset += byte_count
    if _LENGTH_BYTES + header_bytes + offset != file_bytes:
        raise ValueError("it goes on after its last tensor")
    return arrays


def _place(name: str, described: Any) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """Where a tensor begins, its type and its shape."""
    try:
        (begin, end), shape = described["data_offsets"], tuple(described["shape"])
        dtype = stored_dtype(described["dtype"])
        is_whole = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
        if is_whole and end - begin == math.prod(shape) * dtype.itemsize:
            return begin, dtype, shape
    except (TypeError, KeyError, ValueError):
        pass
    raise ValueError(f"the header does not describe {name}")
