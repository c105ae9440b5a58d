"""`distill runs` and `distill checkpoints`: what a student keeps."""

import argparse
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Column, Table

from client.commands.command import Command, add_student_address, add_timeout, open_student
from distill.v1.training_pb2 import RunConfig


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_student_address(parser)
    add_timeout(parser)


def _whole(header: str) -> Column:
    """A column of names, which are for copying: wrapped where there is no room, and never cut."""
    return Column(header, overflow="fold")


def _trained(config: RunConfig) -> str:
    return f"LoRA rank {config.lora.rank}" if config.HasField("lora") else "all weights"


def _list_runs(arguments: argparse.Namespace) -> None:
    with open_student(arguments) as student:
        runs = student.list_runs()
    table = Table(_whole("run"), "trains", "parameters", "steps", "batches waiting", "weights")
    for run in runs:
        table.add_row(
            run.run_id,
            _trained(run.config),
            f"{run.trainable_parameter_count:,}",
            str(run.step),
            str(run.accumulated_batches),
            run.weights_version,
        )
    Console().print(table if runs else "no runs")


def _add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="name of the run")
    add_student_address(parser)
    add_timeout(parser)


def _list_checkpoints(arguments: argparse.Namespace) -> None:
    with open_student(arguments) as student:
        checkpoints = student.list_checkpoints(arguments.run)
    table = Table(_whole("checkpoint"), "steps", "size", "saved (UTC)", "weights")
    for checkpoint in checkpoints:
        saved = datetime.fromtimestamp(checkpoint.created_unix_seconds, UTC)
        table.add_row(
            checkpoint.name,
            str(checkpoint.step),
            f"{checkpoint.size_bytes / 2**20:.1f} MiB",
            f"{saved:%Y-%m-%d %H:%M:%S}",
            checkpoint.weights_version,
        )
    Console().print(table if checkpoints else "no checkpoints")


RUNS = Command(
    name="runs",
    summary="the runs of a student",
    description="Lists the runs of a student by name.",
    add_arguments=_add_run_arguments,
    execute=_list_runs,
)

CHECKPOINTS = Command(
    name="checkpoints",
    summary="the checkpoints of a run",
    description="Lists the checkpoints of a run, oldest first.",
    add_arguments=_add_checkpoint_arguments,
    execute=_list_checkpoints,
)
