"""Options of every channel that this project opens: client to service, and student to teacher."""

from distill.limits import MAX_MESSAGE_BYTES

CONNECT_SECONDS = 5
"""Most time for a connection to come about, handshake included."""

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Twice what a service takes, so that a message that is too large meets the service, whose
    # error names the limit, and not gRPC's.
    ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
    # A frozen service is seen 13 s after its last word, which leaves time to say so within 15 s;
    # keepalive_timeout_ms alone takes 60 s.
    ("grpc.keepalive_time_ms", 8_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # After two pings without data, gRPC would ping once a minute: a service that freezes 45 s into
    # a silent call was seen after 35 s.
    ("grpc.http2.max_pings_without_data", 0),
    # The client retries itself: gRPC would also retry statuses and sizes that must not be retried.
    ("grpc.enable_retries", 0),
    # Services are on this machine or a private network; a proxy for the web cannot reach them.
    ("grpc.enable_http_proxy", 0),
    # A service that is restarted is found again in a second, not in up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Despite its name the time limit of a connection attempt. A frozen process accepts the
    # connection and says nothing; by default that takes 20 s.
    ("grpc.min_reconnect_backoff_ms", 1_000 * CONNECT_SECONDS),
)
