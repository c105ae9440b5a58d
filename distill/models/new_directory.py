"""Directories that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from distill.errors import AlreadyExistsError


def check_vacant(target: Path) -> None:
    """Refuse a place that holds something already.

    Raises:
        AlreadyExistsError: it exists and is not an empty directory.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise AlreadyExistsError(f"{target.name!r} exists and is not an empty directory")


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory to write into, which takes the target's place when the block succeeds.

    The target's parent is made where needed. Processes that write to one target take turns, and
    the second finds it taken.

    Raises:
        AlreadyExistsError: the target exists and is not an empty directory.
    """
    check_vacant(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        check_vacant(target)
        with written_aside(target) as aside:
            yield aside


def locked(target: Path) -> FileLock:
    """The lock of a target: processes that want to write there take turns."""
    return FileLock(target.parent / f".{target.name}.lock")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A directory beside the target, renamed to it when the block succeeds.

    The caller holds the target's lock, and knows that the target is absent or empty.
    """
    aside = target.parent / f".{target.name}.partial"
    # Only a killed process leaves one: this one has the lock.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _sync(aside)
        # An empty directory in the target's place is replaced, any other stops the rename.
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Put the files on the disk, so that a power cut after the rename cannot empty them."""
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
