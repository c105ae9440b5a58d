"""Parts of protobuf's wire format, byte for byte as protobuf itself writes them.

For messages whose payload is an array: protobuf's own Python interface takes one object per value,
while a packed field on the wire is a header and then the values as they lie in memory. Reading is
left to protobuf's parser, which takes every valid encoding and refuses all others.
"""

_VARINT = 0
_LENGTH_DELIMITED = 2

_UINT64_MASK = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; a negative number as its two's complement of 64 bits."""
    # int(): a NumPy integer would overflow in the mask.
    rest = int(value) & _UINT64_MASK
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def int_field(number: int, value: int) -> bytes:
    """An int32 or int64 field; nothing for 0, the default, which proto3 leaves out."""
    return varint(number << 3 | _VARINT) + varint(value) if value else b""


def payload_header(number: int, byte_count: int) -> bytes:
    """What precedes the bytes of a field that is a message, a packed list or a string."""
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(byte_count)
