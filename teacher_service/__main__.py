"""The teacher process: `distill-teacher`, or `python -m teacher_service`."""

import argparse
from collections.abc import Sequence
from functools import partial

from distill.rpc.options import ServerOptions, add_server_arguments, parse_server_options
from distill.rpc.server import Service, serve

_PROGRAM = "distill-teacher"


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Exits with code 2 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Serves a fixed model that scores prompts: the most probable tokens of every "
        "position with their log-probabilities, over gRPC.",
    )
    add_server_arguments(parser, default_port=50051)
    options = parse_server_options(parser, parser.parse_args(argv))
    serve(options, program=_PROGRAM, load=load_service)


def load_service(options: ServerOptions) -> Service:
    """Load the model and build the service around it.

    Raises:
        ModelError: the model cannot be loaded.
    """
    # Imported here: JAX takes a second to import, and --help and a bad argument do without it.
    from distill.rpc.scoring_service import ScoringService
    from distill.v1.teacher_service_pb2 import DESCRIPTOR
    from distill.v1.teacher_service_pb2_grpc import add_TeacherServiceServicer_to_server
    from teacher_service.servicer import TeacherServicer

    scoring = ScoringService.start(options)
    return Service(
        full_name=DESCRIPTOR.services_by_name["TeacherService"].full_name,
        description=scoring.description,
        register=partial(add_TeacherServiceServicer_to_server, TeacherServicer(scoring)),
        close=scoring.close,
    )


if __name__ == "__main__":
    main()
