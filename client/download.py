"""Files that a service streams, written whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from client.errors import BrokenStreamError
from distill.v1 import student_service_pb2

_DESCRIPTIONS = ("adapter_config.json", "config.json")
"""Every export has one of these."""


def write_files(
    pieces: Iterable[student_service_pb2.ExportWeightsResponse], directory: Path
) -> list[Path]:
    """Write streamed files into a directory that appears whole; an earlier export is replaced.

    Args:
        pieces: pieces of files; those of a file come in order and leave no gap.
        directory: where the files go. Its parents are created.

    Returns:
        The files, by name.

    Raises:
        BrokenStreamError: a gap, a file that is cut short, no file, or a name that is a path.
        FileExistsError: the directory holds something other than an earlier export.
    """
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write_pieces(pieces, aside)
        # mkdtemp's own mode would keep the result from everybody else.
        aside.chmod(0o755)
        _replace_directory(aside, directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return sorted(directory.iterdir())


def _check_replaceable(directory: Path) -> None:
    """Refuse to replace what no export made."""
    is_export = any((directory / name).is_file() for name in _DESCRIPTIONS)
    if directory.exists() and not is_export and (directory.is_file() or any(directory.iterdir())):
        raise FileExistsError(
            f"{str(directory)!r} holds files and is no earlier export: name another directory"
        )


def _write_pieces(
    pieces: Iterable[student_service_pb2.ExportWeightsResponse], directory: Path
) -> None:
    sizes: dict[str, int] = {}
    files: dict[str, BinaryIO] = {}
    try:
        for piece in pieces:
            name = piece.file_name
            # The name comes from the network: it must not leave the directory.
            if not name or name in (".", "..") or Path(name).name != name or "\\" in name:
                raise BrokenStreamError(f"{name!r} is no file name")
            if name not in files:
                files[name] = (directory / name).open("xb")
                sizes[name] = piece.file_bytes
            if piece.byte_offset != files[name].tell():
                raise BrokenStreamError(
                    f"{name}: the next byte is {files[name].tell()}, got {piece.byte_offset}"
                )
            files[name].write(piece.data)
        for name, file in files.items():
            if file.tell() != sizes[name]:
                raise BrokenStreamError(f"{name}: ends at {file.tell()} of {sizes[name]} bytes")
    finally:
        for file in files.values():
            file.close()
    if not files:
        raise BrokenStreamError("the service sent no file")


def _replace_directory(source: Path, target: Path) -> None:
    if not target.exists():
        source.rename(target)
        return
    # A directory cannot be renamed over another one that holds files.
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / "previous")
    source.rename(target)
    shutil.rmtree(old)
