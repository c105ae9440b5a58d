"""What a service accepts in one request. Enforced at the edge, published by GetModelInfo."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Upper bounds of one request; a larger one is refused before any compute."""

    max_sequence_tokens: int
    """Longest sequence, in tokens."""

    max_top_k: int
    """Largest support size K. The vocabulary size bounds it as well."""

    max_sequences: int = 1024
    """Most prompts, or training examples, in one request."""

    max_request_tokens: int = 1 << 20
    """Most tokens in one request, over all its sequences."""

    max_request_bytes: int = 1 << 30
    """Most bytes of one request, over all the messages of a client stream."""


MAX_MESSAGE_BYTES = 64 << 20
"""Largest single gRPC message, on both sides. gRPC's own default of 4 MiB is too small for a
tokenizer. Chunks stay far below this limit."""
