"""The student service as a process: `distill-student`, `python -m student_service`."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from distill.rpc.address import channel_target
from distill.rpc.options import (
    ServerOptions,
    add_server_arguments,
    parse_server_options,
    positive_int,
)
from distill.rpc.server import Service, StartError, serve

PROGRAM = "distill-student"

_HELD: list[ExitStack] = []
"""What the process holds until it ends."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train runs on one base model: gradients of distillation objectives, "
        "optimizer steps, sampling, scoring, checkpoints and export over gRPC.",
    )
    add_server_arguments(parser, default_port=50052)
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT",
        help="a teacher that this student may pull distributions from; repeat for more "
        "(default: none)",
    )
    parser.add_argument(
        "--runs-dir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where checkpoints are saved (default: %(default)s)",
    )
    parser.add_argument(
        "--micro-batch-tokens",
        type=positive_int,
        default=1024,
        metavar="TOKENS",
        help="most padded tokens of one compiled training call: bounds the memory of "
        "activations (default: %(default)s)",
    )
    parser.add_argument(
        "--remat",
        action="store_true",
        help="recompute activations in the backward pass: less memory, more time (default: keep)",
    )
    parser.add_argument(
        "--max-runs",
        type=positive_int,
        default=256,
        metavar="COUNT",
        help="runs at a time; each holds its trained parameters three times in float32, and their "
        "gradient (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    options = parse_server_options(parser, arguments)
    try:
        teachers = _parse_teachers(arguments.teacher)
    except ValueError as error:
        parser.error(f"argument --teacher: {error}")
    load = partial(
        load_service,
        teachers=teachers,
        runs_dir=arguments.runs_dir,
        max_runs=arguments.max_runs,
        micro_batch_tokens=arguments.micro_batch_tokens,
        remat=arguments.remat,
    )
    serve(options, program=PROGRAM, load=load)


def _parse_teachers(values: Sequence[str]) -> dict[str, str]:
    teachers: dict[str, str] = {}
    for value in values:
        name, separator, address = value.partition("=")
        if not (name and separator):
            raise ValueError(f"must be NAME=HOST:PORT, got {value!r}")
        try:
            channel_target(address)
        except ValueError as error:
            raise ValueError(f"the address of {name!r} {error}") from None
        if name in teachers:
            raise ValueError(f"the name {name!r} is given twice")
        teachers[name] = address
    return teachers


def load_service(
    options: ServerOptions,
    *,
    teachers: dict[str, str],
    runs_dir: Path,
    max_runs: int,
    micro_batch_tokens: int,
    remat: bool,
) -> Service:
    """Load the model and build the service around it.

    Raises:
        ModelError: the model cannot be loaded.
        StartError: the directory of runs cannot be written to, or another student has it.
    """
    # Here and not above: JAX takes a second to import, and --help or a bad argument need none.
    from distill.rpc.scoring_service import ScoringService
    from distill.v1.student_service_pb2 import DESCRIPTOR
    from distill.v1.student_service_pb2_grpc import add_StudentServiceServicer_to_server
    from student_service.edge.teacher_pool import TeacherPool
    from student_service.runs.checkpoints import CheckpointStore
    from student_service.runs.directory_lock import held_directory
    from student_service.runs.environment import training_environment
    from student_service.runs.incarnation import first_epoch
    from student_service.runs.registry import RunRegistry
    from student_service.runs.sequencer import IN_FLIGHT_LIMIT
    from student_service.runs.waiting_room import WaitingRoom
    from student_service.servicer import StudentServicer
    from student_service.training.trainer import Trainer

    with ExitStack() as held:
        try:
            held.enter_context(held_directory(runs_dir))
            epoch = first_epoch(runs_dir)
        except (OSError, ValueError) as error:
            raise StartError(f"cannot use --runs-dir {runs_dir}: {error}") from error
        scoring = ScoringService.start(options, max_in_flight_mutations=IN_FLIGHT_LIMIT)
        engine, model = scoring.engine, scoring.engine.model
        trainer = Trainer(model, token_budget=micro_batch_tokens, remat=remat)
        pool = TeacherPool(teachers, tokenizer_fingerprint=model.tokenizer.fingerprint)
        store = CheckpointStore(runs_dir, environment=training_environment(model))
        store.remove_deleted()
        runs = RunRegistry(
            model,
            trainer=trainer,
            queue=engine.queue,
            store=store,
            # The other half stays free for requests that can run, among them the predecessors of
            # those that wait.
            waiting_room=WaitingRoom(
                places=options.max_concurrent_requests // 2,
                byte_limit=options.max_held_bytes // 2,
            ),
            first_epoch=epoch,
            max_runs=max_runs,
        )
        servicer = StudentServicer(scoring, runs=runs, teachers=pool)
        # To the end of the process: a request that was given up at the stop may still write.
        _HELD.append(held.pop_all())

    def close(grace_seconds: float) -> None:
        scoring.close(grace_seconds)
        pool.close()

    return Service(
        full_name=DESCRIPTOR.services_by_name["StudentService"].full_name,
        description=scoring.description,
        register=partial(add_StudentServiceServicer_to_server, servicer),
        close=close,
    )


if __name__ == "__main__":
    main()
