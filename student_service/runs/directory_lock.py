"""One process on a directory of runs: a second one would overwrite the first's checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distill.files import make_directory

LOCK_FILE = ".lock"
"""In the directory of runs. No run can have this name, because names do not start with a dot."""


@contextmanager
def held_directory(runs_dir: Path) -> Iterator[None]:
    """Hold a directory of runs, which is made where needed. The system frees it at the end of the
    process, however that comes.

    Raises:
        BlockingIOError: another process holds it; says what to do.
        OSError: it cannot be made or written to.
    """
    make_directory(runs_dir)
    # Not a lock of the thread: the one that stops the service frees it.
    lock = FileLock(runs_dir / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(
            "another student keeps its runs there; stop it, or give this one a directory of its own"
        ) from None
    try:
        yield
    finally:
        lock.release()
