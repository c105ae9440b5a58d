"""`distill info`: what services serve and accept."""

import argparse

from rich.console import Console
from rich.table import Table

from client.commands.command import Command, add_timeout, address, open_student, retry_policy
from client.results import Limits, ModelInfo
from client.teacher import TeacherClient


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for role in ("teacher", "student"):
        parser.add_argument(
            f"--{role}-address", type=address, metavar="HOST:PORT", help=f"describe this {role}"
        )
    add_timeout(parser)


def _execute(arguments: argparse.Namespace) -> None:
    if arguments.teacher_address is None and arguments.student_address is None:
        arguments.fail("give --teacher-address, --student-address, or both")
    described: dict[str, ModelInfo] = {}
    teacher_names: list[str] = []
    if arguments.teacher_address is not None:
        with TeacherClient(
            arguments.teacher_address,
            timeout_seconds=arguments.timeout_seconds,
            retry=retry_policy(arguments),
        ) as teacher:
            described["teacher"] = teacher.model_info()
    if arguments.student_address is not None:
        with open_student(arguments) as student:
            described["student"] = student.model_info()
            teacher_names = student.teacher_names()
    table = Table("", *described)
    for field in ModelInfo.DESCRIPTOR.fields:
        if field.message_type is None:
            values = (str(getattr(info, field.name)) for info in described.values())
            table.add_row(field.name, *values)
    for field in Limits.DESCRIPTOR.fields:
        values = (str(getattr(info.limits, field.name)) for info in described.values())
        table.add_row(field.name, *values)
    names = {"student": ", ".join(teacher_names)}
    table.add_row("teachers", *(names.get(role, "") for role in described))
    Console().print(table)


INFO = Command(
    name="info",
    summary="what services serve and accept",
    description="Describes the model and the limits of running services, side by side.",
    add_arguments=_add_arguments,
    execute=_execute,
)
