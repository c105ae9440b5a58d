"""Addresses of services, as people type them."""

import re

_HOST_PORT = re.compile(r"(?P<host>\[[^\[\]\s]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")

_WITH_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):\S+")
"""Other targets of a channel (https://github.com/grpc/grpc/blob/master/doc/naming.md)."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; an IPv6 host stands in brackets, and comes without them.

    Raises:
        ValueError: it is none.
    """
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"must be HOST:PORT with a port up to 65535, got {address!r}")
    return match["host"].strip("[]"), int(match["port"])


def channel_target(address: str) -> str:
    """The same address, if it is HOST:PORT or one of gRPC's own targets.

    gRPC takes other texts as well: without a port it connects to that of HTTPS.

    Raises:
        ValueError: it is neither.
    """
    if not _WITH_SCHEME.fullmatch(address):
        split_address(address)
    return address
