"""Interim."""

import hashlib


def request_digest(operation: str, *values: object) -> bytes:
    """Digest."""
    return hashlib.sha256(repr((operation, values)).encode()).digest()
