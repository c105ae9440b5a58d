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
    # Here and not above: JAX takes a second to import, and --help or a bad argument need none.
    from distill.engine.allocator import keep_freed_memory
    from distill.engine.compilation_cache import enable_compilation_cache
    from distill.engine.device_queue import DeviceQueue
    from distill.engine.precision import use_full_precision
    from distill.engine.sampler import Sampler
    from distill.engine.scorer import Scorer
    from distill.engine.scoring_scheduler import ScoringScheduler
    from distill.models.loading import load_model
    from distill.rpc.model_info import describe_service, request_limits
    from distill.v1.teacher_service_pb2 import DESCRIPTOR
    from distill.v1.teacher_service_pb2_grpc import add_TeacherServiceServicer_to_server
    from teacher_service.servicer import TeacherServicer

    keep_freed_memory()
    use_full_precision()
    enable_compilation_cache(options.cache_dir)
    model = load_model(
        options.model,
        compute_dtype=options.dtype,
        cache_dir=options.cache_dir,
        mask_padded_vocabulary=options.mask_padded_vocabulary,
    )
    limits = request_limits(
        model, max_sequence_tokens=options.max_sequence_tokens, max_top_k=options.max_top_k
    )
    queue = DeviceQueue()
    scorer = Scorer(model)
    servicer = TeacherServicer(
        model=model,
        limits=limits,
        queue=queue,
        scoring=ScoringScheduler(
            queue,
            scorer,
            token_budget=2 * scorer.token_budget,
            shares_prefixes=scorer.shares_prefixes,
        ),
        sampler=Sampler(model),
    )
    return Service(
        full_name=DESCRIPTOR.services_by_name["TeacherService"].full_name,
        description=describe_service(model),
        register=partial(add_TeacherServiceServicer_to_server, servicer),
        close=lambda grace_seconds: queue.close(grace_seconds=grace_seconds),
    )


if __name__ == "__main__":
    main()
