"""The file that holds the arrays of a checkpoint: its name, and how it is written and read."""

import hashlib
import os
import re
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import CorruptDataError
from distill.files import NotAFileError, open_file
from distill.models.safetensors_stream import read_safetensors, safetensors_file, unread


def state_name(info: Mapping[str, Any], *, taken: str | None) -> str:
    """The name of a state: that of the checkpoint, and the mutation that saves it.

    Args:
        info: of the save.
        taken: the state that the manifest in place names. It stays until that manifest is replaced,
            also where another mutation had the same epoch and number.
    """
    stem = f"{info['name']}-{info['writer_epoch']}-{info['sequence_number']}"
    # No checkpoint's name has a "+".
    return f"{stem}+.safetensors" if taken == f"{stem}.safetensors" else f"{stem}.safetensors"


def is_state_of(checkpoint: str, file_name: str) -> bool:
    """Whether a file is a state that some save of a checkpoint wrote."""
    # A number has no "-", so the states of a checkpoint "a-1" are none of "a". The second form is
    # that of format 2.
    form = rf"{re.escape(checkpoint)}-([0-9]+-[0-9]+\+?|[0-9a-f]{{32}})\.safetensors"
    return re.fullmatch(form, file_name) is not None


def write_state(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Write and sync a state; returns its size in bytes and its digest."""
    state = safetensors_file(path.name, [unread(name, array) for name, array in arrays.items()])
    digest = hashlib.sha256()
    path.unlink(missing_ok=True)  # of an attempt that was killed, or a link
    with path.open("xb") as file:
        for piece in state.pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return state.byte_count, digest.hexdigest()


def state_is_whole(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the state of a manifest is there and matches its digest."""
    try:
        with open_file(_state_path(directory, manifest)) as file:
            return _digest(file) == str(manifest["state_sha256"])
    except (FileNotFoundError, NotAFileError):
        return False


def read_state(directory: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of a manifest; None where they are missing or do not match its digest.

    Raises:
        CorruptDataError: the state matches its digest and is no file of arrays.
    """
    try:
        with open_file(_state_path(directory, manifest)) as file:
            # The same open file for both: what is read is what was checked.
            if _digest(file) != manifest["state_sha256"]:
                return None
            return read_safetensors(file)
    except (FileNotFoundError, NotAFileError):
        return None
    except ValueError as error:
        raise CorruptDataError(
            f"the state of checkpoint {manifest['name']!r} cannot be read: {error}"
        ) from error


def _state_path(directory: Path, manifest: Mapping[str, Any]) -> Path:
    return directory / Path(manifest["state_file"]).name


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
