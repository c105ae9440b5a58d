"""The `distill` command.

Everything of the project is imported inside `main`: it takes a third of a second, and Ctrl-C may
come in it.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, as shells have it."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from client.commands import COMMANDS

    parser = argparse.ArgumentParser(
        prog="distill",
        description="Distil language models over a teacher and a student service. "
        "Exit codes: 0 success, 1 failure, 2 wrong arguments, 130 Ctrl-C.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name, help=command.summary, description=command.description
        )
        command.add_arguments(subparser)
        subparser.set_defaults(execute=command.execute, fail=subparser.error)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Failures are one message on standard error and exit code 1."""
    try:
        arguments = build_parser().parse_args(argv)
        # As an exception, so that services which this program started are stopped in order.
        signal.signal(signal.SIGTERM, _terminate)
        arguments.execute(arguments)
    except KeyboardInterrupt:
        print("distill: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output left, as `head` does. Without this, Python complains at exit too.
        sys.stderr.close()
        raise SystemExit(1) from None
    except Exception as error:
        if not isinstance(error, _reported_errors()):
            raise
        print(f"distill: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _reported_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is for the person at the terminal."""
    from client.errors import ClientError
    from client.services.local import ServiceStartError
    from distill.errors import DistillError

    return (ClientError, DistillError, ServiceStartError, OSError, ValueError)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    main()
