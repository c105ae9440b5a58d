"""Asks a service whether it is serving: `python -m distill.rpc.health_probe HOST:PORT`.

For container health checks, which need a command in the image. Exits with 0 when the service
answers SERVING, else with 1 and one line on standard error. Speaks grpc.health.v1.
"""

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distill.rpc.channel import CHANNEL_OPTIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Probe once; returns the exit code."""
    parser = argparse.ArgumentParser(prog="health_probe", description=__doc__.splitlines()[0])
    parser.add_argument("address", metavar="HOST:PORT", help="address of the service")
    parser.add_argument(
        "--service",
        default="",
        metavar="NAME",
        help="full name of a gRPC service (default: the server as a whole)",
    )
    parser.add_argument(
        "--timeout-seconds",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="time to wait for the answer (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    problem = health_problem(
        arguments.address, service=arguments.service, timeout_seconds=arguments.timeout_seconds
    )
    if problem is not None:
        print(f"{arguments.address}: {problem}", file=sys.stderr)
        return 1
    return 0


def health_problem(address: str, *, service: str, timeout_seconds: float) -> str | None:
    """Why the service at `address` is not serving; None when it is.

    Args:
        address: HOST:PORT.
        service: full name of a gRPC service, or "" for the server as a whole.
        timeout_seconds: time to wait for the answer.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"the service reports {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"


if __name__ == "__main__":
    sys.exit(main())
