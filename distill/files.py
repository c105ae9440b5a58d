"""Files and directories that appear whole or not at all, and files of JSON.

What must survive a power cut is written in four steps: into a file aside, which is synced; then
that file is renamed, and the directory is synced. Without the first sync the renamed file may come
back empty, without the second the name may come back as it was.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill.errors import AlreadyExistsError, ModelError


class NotAFileError(OSError):
    """A link, a pipe or a directory stands where a file is read."""


def sync(path: Path) -> None:
    """Put the content of a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, each synced into its parent."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    try:
        sync(path.parent)
    except OSError:
        # The next call would find it and take it for synced.
        with suppress(OSError):
            path.rmdir()
        raise


def open_file(path: Path) -> BufferedReader:
    """Open a file to read it. What is no file is neither followed nor waited for.

    Raises:
        FileNotFoundError: there is nothing.
        NotAFileError: it is a link, a pipe, a directory or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        # A link is ELOOP, a socket is ENXIO.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotAFileError(error.errno, "not a regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a file, or replace one: a reader, and a power cut, see the old content or the new.

    One process at a time writes to a path. A text is written in UTF-8.
    """
    rename_aside(write_aside(path, content), path)
    sync(path.parent)


def write_aside(path: Path, content: str | bytes) -> Path:
    """Write and sync what `rename_aside` will rename to `path`; nothing is left if that fails.

    For callers that must undo something while the old file is still in place.
    """
    aside = path.with_name(f"{path.name}.tmp")
    # A link that somebody put there goes; what it points to stays.
    aside.unlink(missing_ok=True)
    try:
        with aside.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        _remove(aside)
        raise
    return aside


def rename_aside(aside: Path, path: Path) -> None:
    """Rename what `write_aside` wrote; nothing is left if that fails. The caller then syncs the
    directory, or a power cut may undo it."""
    try:
        aside.replace(path)
    except BaseException:
        _remove(aside)
        raise


def _remove(path: Path) -> None:
    """Remove a file of a failed write, whose own error matters more than this one's."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def format_json(content: Mapping[str, Any]) -> str:
    """An object as files have it: indented, with a newline at its end."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object.

    A reader may see a part of it: see `replace_json` and `write_durably`.
    """
    path.write_text(format_json(content), encoding="utf-8")


def replace_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object so that a reader sees the old file or the whole new one.

    Any number of processes may write at once. It is not synced: for what a power cut may take.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(aside, content)
    aside.replace(path)


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """The object that a text holds.

    Raises:
        ValueError: the text is no JSON, or holds something other than an object.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"must hold a JSON object, holds a {type(content).__name__}")
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a file of a model directory.

    Raises:
        ModelError: there is no such file, or it holds something else; names the file.
    """
    if not path.is_file():
        raise ModelError(f"the model directory has no {path.name}")
    try:
        return parse_json_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path.name} cannot be read: {error}") from error


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

    The target's parent is made where needed, durably. Processes that write to one target take
    turns, and the second finds it taken.

    Raises:
        AlreadyExistsError: the target exists and is not an empty directory.
    """
    check_vacant(target)
    make_directory(target.parent)
    with locked(target):
        check_vacant(target)
        with directory_aside(target) as aside:
            yield aside


def locked(target: Path) -> FileLock:
    """The lock of a target: processes that want to write there take turns."""
    return FileLock(target.parent / f".{target.name}.lock")


@contextmanager
def directory_aside(target: Path) -> Iterator[Path]:
    """A directory of files beside the target, renamed to it when the block succeeds.

    The caller holds the target's lock, and knows that the target is absent or empty.
    """
    aside = target.parent / f".{target.name}.partial"
    # The caller has the lock, so only a process that was killed can have left one.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for path in (*aside.iterdir(), aside):
            sync(path)
        # The rename replaces an empty directory, and fails on any other.
        aside.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
