"""The arguments that both services take."""

import argparse
import ipaddress
import logging
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from distill.dtypes import AUTO_DTYPE, COMPUTE_DTYPES
from distill.limits import MAX_HELD_BYTES
from distill.rpc.address import split_address

_BYTES_OF_UNIT = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

_LEAST_HELD_BYTES = 1 << 20
"""Refuses a number whose unit was forgotten."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What both services can be told."""

    model: str
    """Reference of the model to serve."""

    host: str
    """Address to listen on."""

    port: int
    """Port to listen on; 0 picks a free one."""

    ready_file: Path | None
    """Written once the service answers: JSON with `address` and `pid`."""

    exit_when_stdin_closes: bool
    """Stop at the end of standard input: no service outlives the process that started it."""

    dtype: str
    """Compute dtype: "float32", "bfloat16", or "auto" for the fast one of the device."""

    mask_padded_vocabulary: bool
    """Whether tokens that the tokenizer does not have get no probability."""

    max_top_k: int | None
    """Largest support size K; None: the vocabulary size."""

    max_sequence_tokens: int | None
    """Longest sequence; None: the model's context."""

    cache_dir: Path | None
    """Where converted models and compiled code are kept; None: the user's cache directory."""

    max_concurrent_requests: int
    """Requests in progress at a time; one more is refused."""

    grace_seconds: float
    """Time that requests in progress have to finish when the service stops."""

    max_held_bytes: int = MAX_HELD_BYTES
    """Most bytes that requests in progress hold together."""

    reflection: bool = False
    """Whether the service describes itself by gRPC server reflection."""


def add_server_arguments(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """Add the arguments that both services take."""
    add = parser.add_argument
    add(
        "--model",
        default="smollm2-135m",
        metavar="REF",
        help="a directory, a .gguf file, the name smollm2-135m, or a hub id (default: %(default)s)",
    )
    add(
        "--listen",
        default=f"127.0.0.1:{default_port}",
        metavar="HOST:PORT",
        help="address to serve on; port 0 picks a free one (default: %(default)s)",
    )
    add(
        "--insecure-bind",
        action="store_true",
        help="allow an address beyond loopback, without TLS: anybody who reaches it can use the "
        "service (default: refuse)",
    )
    add(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help='written when the service answers: {"address": "HOST:PORT", "pid": PID} '
        "(default: none)",
    )
    add(
        "--exit-when-stdin-closes",
        action="store_true",
        help="stop at the end of standard input, so that the service never outlives the process "
        "that started it (default: keep running)",
    )
    add(
        "--dtype",
        choices=(AUTO_DTYPE, *COMPUTE_DTYPES),
        default=AUTO_DTYPE,
        help="compute dtype; auto: bfloat16 on an accelerator, float32 on a CPU; logits are always "
        "float32 (default: %(default)s)",
    )
    add(
        "--mask-padded-vocabulary",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give the rows of the head that the tokenizer has no token for no probability, and "
        "refuse their ids (default: %(default)s)",
    )
    add(
        "--max-top-k",
        type=positive_int,
        metavar="K",
        help="largest support size of a request (default: the vocabulary size)",
    )
    add(
        "--max-sequence-tokens",
        type=positive_int,
        metavar="TOKENS",
        help="longest sequence of a request (default: the model's context)",
    )
    add(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where converted models and compiled code are kept (default: the user's cache "
        "directory)",
    )
    add(
        "--max-concurrent-requests",
        type=positive_int,
        default=64,
        metavar="COUNT",
        help="requests in progress at a time; one more is refused (default: %(default)s)",
    )
    add(
        "--max-held-bytes",
        type=_held_bytes,
        default=f"{MAX_HELD_BYTES >> 30}GiB",
        metavar="BYTES",
        help="most memory that the messages of all requests in progress take together, and most "
        "of a single one; a request beyond it is refused for now. Beside it, each request may have "
        "one message of up to 128 MiB on its way. A number, or one with KiB, MiB or GiB (default: "
        "%(default)s)",
    )
    add(
        "--reflection",
        action="store_true",
        help="describe the services by gRPC server reflection, for tools such as grpcurl "
        "(default: do not)",
    )
    add(
        "--grace-seconds",
        type=_duration,
        default=10.0,
        metavar="SECONDS",
        help="time for requests in progress to finish on SIGTERM or Ctrl-C (default: %(default)s)",
    )
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least severe event to log to standard error; debug may show request content "
        "(default: %(default)s)",
    )


def parse_server_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> ServerOptions:
    """Check the shared arguments and set up logging; exits with a usage message on a bad one."""
    try:
        host, port = split_address(arguments.listen)
    except ValueError as error:
        parser.error(f"argument --listen: {error}")
    if not arguments.insecure_bind and not _is_loopback(host):
        parser.error(
            f"argument --listen: {host} is reachable from other machines and there is no TLS; "
            "give --insecure-bind if the network is private"
        )
    logging.basicConfig(
        stream=sys.stderr,
        level=arguments.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if arguments.log_level != "debug":
        # JAX reports at info level which kinds of device it did not find.
        logging.getLogger("jax").setLevel(logging.WARNING)
    # Every other option has the name of its argument.
    values = {**vars(arguments), "host": host, "port": port}
    return ServerOptions(**{field.name: values[field.name] for field in fields(ServerOptions)})


def positive_int(text: str) -> int:
    """The type of an argument that counts something, for `add_argument`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _held_bytes(text: str) -> int:
    number = text.rstrip("KMGiB")
    unit = text.removeprefix(number)
    if not (number.isascii() and number.isdecimal()) or unit not in _BYTES_OF_UNIT:
        raise argparse.ArgumentTypeError(
            f"must be a number of bytes, KiB, MiB or GiB, such as 512MiB, got {text!r}"
        )
    value = int(number) * _BYTES_OF_UNIT[unit]
    if value < _LEAST_HELD_BYTES:
        raise argparse.ArgumentTypeError(f"must be at least 1MiB, got {text}")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _duration(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return value
