"""Running commands for these tests: what each one does is printed, and its output if it fails."""

import subprocess
import time
from collections.abc import Mapping, Sequence

TAIL_LINES = 60


class CommandError(Exception):
    """A command failed; the message holds the end of its output."""


def run(
    arguments: Sequence[str],
    *,
    what: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 60,
) -> str:
    """Run a command; returns its standard output.

    Args:
        arguments: the command line.
        what: printed with the time it took; None: nothing is printed.
        environment: of the command; None: this process's.
        timeout_seconds: after it the command is killed.

    Raises:
        CommandError: it cannot be run, exits with a code other than 0, or takes too long.
    """
    started = time.monotonic()
    if what is not None:
        print(f"==> {what} ...", flush=True)
    try:
        process = subprocess.run(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except OSError as error:
        raise CommandError(f"{arguments[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"{' '.join(arguments)}: not finished after {timeout_seconds:g} s"
        ) from None
    if process.returncode != 0:
        lines = (process.stdout + process.stderr).splitlines()[-TAIL_LINES:]
        raise CommandError(
            "\n".join([f"{' '.join(arguments)}: exit code {process.returncode}", *lines])
        )
    if what is not None:
        print(f"    {time.monotonic() - started:.1f} s", flush=True)
    return process.stdout


def succeeds(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a command can be run and exits with code 0."""
    try:
        run(arguments, environment=environment)
    except CommandError:
        return False
    return True
