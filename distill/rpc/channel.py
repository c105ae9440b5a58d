"""Options of every channel that this project opens: client to service, and student to teacher."""

from distill.limits import MAX_MESSAGE_BYTES

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A frozen service is seen within 15 s; keepalive_timeout_ms alone takes 60 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The client retries itself: gRPC would also retry statuses and sizes that must not be retried.
    ("grpc.enable_retries", 0),
    # Services are on this machine or a private network; a proxy for the web cannot reach them.
    ("grpc.enable_http_proxy", 0),
    # A service that is restarted is found again in a second, not in up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
