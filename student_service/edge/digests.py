"""Digests of what the student understood of a request.

Two requests that mean the same have the same digest, however their messages were written: a
default that is spelled out, another order of chunks. So values are digested after they were parsed,
and not the bytes of messages, whose serialisation protobuf does not promise to keep.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from struct import pack

import numpy as np
from numpy.typing import NDArray


def request_digest(operation: str, *values: object) -> bytes:
    """Digest of a mutation: what it does, and the parsed values that say how.

    Args:
        operation: name of the RPC.
        values: plain values, see `value_digest`.
    """
    return value_digest((operation, values))


def value_digest(value: object) -> bytes:
    """SHA-256 of a plain value: the same in every process, and another one for every other value.

    Args:
        value: None, bool, int, float, str, bytes, a NumPy array or scalar of numbers; tuples,
            lists, mappings and dataclasses of such values. A tuple equals the list of its items.

    Raises:
        TypeError: a value of another type.
    """
    digest = hashlib.sha256()
    for piece in encoded(value):
        digest.update(piece)
    return digest.digest()


def encoded(value: object) -> Iterator[bytes | memoryview]:
    """The pieces of a value's encoding: a letter for its type, and then its content after its
    length. So no encoding is the beginning of another one, and sequences of them are told apart.
    """
    if value is None:
        yield b"n"
    elif isinstance(value, bool):
        yield b"b1" if value else b"b0"
    elif isinstance(value, int):
        yield from _counted(b"i", str(value).encode())
    elif isinstance(value, float):
        yield b"f" + pack("<d", value)
    elif isinstance(value, str):
        yield from _counted(b"s", value.encode())
    elif isinstance(value, bytes):
        yield from _counted(b"y", value)
    elif isinstance(value, np.ndarray | np.generic):
        yield from _encoded_array(np.asarray(value))
    elif isinstance(value, tuple | list):
        yield b"t" + _length(len(value))
        for item in value:
            yield from encoded(item)
    elif isinstance(value, Mapping):
        yield b"m" + _length(len(value))
        by_key = {b"".join(encoded(key)): item for key, item in value.items()}
        for key in sorted(by_key):
            yield key
            yield from encoded(by_key[key])
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _counted(b"d", type(value).__name__.encode())
        yield from encoded({each.name: getattr(value, each.name) for each in fields(value)})
    else:
        raise TypeError(f"a {type(value).__name__} has no digest")


def _encoded_array(array: NDArray[np.generic]) -> Iterator[bytes | memoryview]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} has no digest")
    kind = array.dtype.newbyteorder("<")
    yield from _counted(b"a", kind.str.encode())
    yield from encoded(array.shape)
    # The type and the shape say how many bytes these are.
    yield array.astype(kind, order="C", copy=False).data


def _counted(letter: bytes, content: bytes) -> tuple[bytes, bytes]:
    return letter + _length(len(content)), content


def _length(count: int) -> bytes:
    return pack("<q", count)
