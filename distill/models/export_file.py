"""Files that are written to a disk or sent over a connection, piece by piece. Knows no JAX."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import format_json

EXPORT_PIECE_BYTES = 1 << 20
"""Largest piece of a file."""


@dataclass(frozen=True, kw_only=True)
class ExportFile:
    """A file whose content is made while it is read."""

    name: str
    """Without any directory."""

    byte_count: int
    """Of the whole file."""

    pieces: Iterator[bytes]
    """Its content in order, at most `EXPORT_PIECE_BYTES` at a time. Can be read once."""


def text_file(name: str, text: str) -> ExportFile:
    """A file of text in UTF-8."""
    content = text.encode()
    return ExportFile(name=name, byte_count=len(content), pieces=cut(memoryview(content)))


def json_file(name: str, content: Mapping[str, Any]) -> ExportFile:
    """A file of an object."""
    return text_file(name, format_json(content))


def cut(content: memoryview) -> Iterator[bytes]:
    """Copies of at most `EXPORT_PIECE_BYTES`: who keeps a piece does not keep all of it."""
    for start in range(0, len(content), EXPORT_PIECE_BYTES):
        yield bytes(content[start : start + EXPORT_PIECE_BYTES])


def write_file(file: ExportFile, directory: Path) -> None:
    """Write a file into a directory, which must be there; one of the same name is replaced."""
    with (directory / file.name).open("wb") as target:
        for piece in file.pieces:
            target.write(piece)
