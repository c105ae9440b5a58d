"""What a service accepts in one request. Enforced at the edge, published by GetModelInfo."""

from dataclasses import dataclass

MAX_MESSAGE_BYTES = 64 << 20
"""Largest single gRPC message, on both sides. gRPC's own default of 4 MiB is too small for a
tokenizer. Chunks stay far below this limit."""

MESSAGE_OVERHEAD_BYTES = 512
"""What a message of a stream costs in memory beside its own bytes: 300,000 empty chunks of 2 bytes
took 167 MB."""

MAX_REQUEST_BYTES = 1 << 30
"""Most bytes of one request, where the service is not started for less."""

MAX_HELD_BYTES = 2 << 30
"""Most bytes of all requests in progress, where the service is not started for another number."""

MAX_SILENT_SECONDS = 120.0
"""Longest wait for the next message of a request: 64 MiB take a minute at 10 Mbit/s."""


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

    max_request_bytes: int = MAX_REQUEST_BYTES
    """Most bytes of one request, over all the messages of a client stream. Each message counts
    MESSAGE_OVERHEAD_BYTES more than its own."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Most bytes of one message."""

    max_in_flight_mutations: int = 0
    """How far a mutation may be ahead of the last applied one; 0 where there are no mutations."""

    max_held_bytes: int = MAX_HELD_BYTES
    """Most bytes that all requests in progress hold together, counted as in `max_request_bytes`."""
