"""What a command is, and the arguments that several share."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from client.errors import ServiceError
from client.recipes.batches import Targets
from client.retry import RetryPolicy
from client.services.local import TEACHER_MODULE, LocalService
from client.settings import DISTRIBUTION_OBJECTIVES
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.rpc.address import channel_target

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_STUDENT = "127.0.0.1:50052"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command."""

    name: str
    """As it is typed."""

    summary: str
    """A line in the list of commands."""

    description: str
    """What it does, in its own help."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments."""

    execute: Callable[[argparse.Namespace], None]
    """Does it."""


def add_teacher_source(parser: argparse.ArgumentParser) -> None:
    """Which teacher to ask: a running one, or one that is started for the call."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--teacher-address",
        type=address,
        metavar="HOST:PORT",
        help="a running teacher (default: start one for this call)",
    )
    source.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="REF",
        help="model of the teacher that is started: a directory, a .gguf file, the name "
        "smollm2-135m, or a hub id (default: %(default)s)",
    )


def add_student_address(parser: argparse.ArgumentParser) -> None:
    """Which student to ask."""
    parser.add_argument(
        "--student-address",
        type=address,
        default=DEFAULT_STUDENT,
        metavar="HOST:PORT",
        help="a running student (default: %(default)s)",
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """The deadline of the command's calls, and how long a service that never answers is tried."""
    parser.add_argument(
        "--timeout-seconds",
        type=positive_float,
        default=300.0,
        metavar="SECONDS",
        help="deadline of each call (default: %(default)s)",
    )
    # Short, because whoever types a command and meets nobody has mistaken the address more often
    # than started a service a moment ago. A service that has answered once is waited for until the
    # deadline, as the contract says.
    parser.add_argument(
        "--wait-seconds",
        type=positive_float,
        default=10.0,
        metavar="SECONDS",
        help="how long to try a service that does not answer at all; a larger number waits for one "
        "that is starting (default: %(default)s)",
    )


def retry_policy(arguments: argparse.Namespace) -> RetryPolicy:
    """How calls are repeated, as `add_timeout` was told."""
    return RetryPolicy(unanswered_seconds=arguments.wait_seconds)


def add_distributions(parser: argparse.ArgumentParser, *, top_k: int, objective: str) -> None:
    """How much of the teacher's distributions travels, on which way, and what is minimised."""
    add = parser.add_argument
    add("--top-k", type=positive_int, default=top_k, metavar="K",
        help="tokens of each distribution that travel (default: %(default)s)")  # fmt: skip
    add("--objective", choices=DISTRIBUTION_OBJECTIVES,
        default=objective, help="what is minimised (default: %(default)s)")  # fmt: skip
    add("--targets", choices=[one.value for one in Targets], default=Targets.PULL.value,
        help="the student pulls the distributions from the teacher, or the client relays them "
        "inline (default: %(default)s)")  # fmt: skip


@contextmanager
def open_teacher(arguments: argparse.Namespace) -> Iterator[TeacherClient]:
    """The teacher that `add_teacher_source` was told; a private one ends with the block."""
    with ExitStack() as stack:
        service, target = None, arguments.teacher_address
        retry = retry_policy(arguments)
        if target is None:
            service = LocalService(TEACHER_MODULE, ["--model", arguments.model])
            target = stack.enter_context(service).address
            # Nobody restarts a private teacher, so there is no waiting for one that has ended.
            retry = RetryPolicy(before_retry=service.check)
        client = TeacherClient(target, timeout_seconds=arguments.timeout_seconds, retry=retry)
        try:
            yield stack.enter_context(client)
        except ServiceError:
            if service is not None:
                service.check()  # its end explains more than the failed call
            raise


def open_student(arguments: argparse.Namespace) -> StudentClient:
    """The student that `add_student_address` was told."""
    return StudentClient(
        arguments.student_address,
        timeout_seconds=arguments.timeout_seconds,
        retry=retry_policy(arguments),
    )


def address(text: str) -> str:
    """Where a service is."""
    try:
        return channel_target(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def some_text(text: str) -> str:
    """A text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def positive_float(text: str) -> float:
    """A number greater than 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
    return value


def non_negative_float(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value
