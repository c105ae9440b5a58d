"""The weights of a Hugging Face directory, written: one safetensors file, or several and an index.

Weights are larger than memory may be: each tensor is read when its file is written, so that the
tensors of one file are in memory at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import save_file

from distill.files import write_json
from distill.models.progress import Progress, say_nothing

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_SHARD_BYTES = 2 << 30
"""Largest file of weights that is written, and so about the memory that writing them takes."""

FILE_METADATA = {"format": "pt"}
"""Transformers reads only files that say which library's layout they have."""


@dataclass(frozen=True, kw_only=True)
class UnreadTensor:
    """A tensor to be written, which is not in memory yet."""

    name: str
    """In the files."""

    byte_count: int
    """Its size in the files, or more where it is not known before the tensor is read."""

    read: Callable[[], NDArray[Any]]
    """Gives the tensor, contiguous and of the type to be stored."""


def write_sharded_weights(
    directory: Path,
    tensors: Sequence[UnreadTensor],
    *,
    max_shard_bytes: int,
    activity: str = "writing weights",
    progress: Progress = say_nothing,
) -> None:
    """Write tensors into a directory, which must be there; files of the same names are replaced.

    Args:
        directory: where the files go.
        tensors: in the order in which they fill the files.
        max_shard_bytes: weights beyond this are spread over several files and an index. A larger
            tensor has a file of its own.
        activity: what is being done, for the lines of progress.
        progress: called with a line of text at each file.
    """
    shards = _plan_shards(tensors, max_shard_bytes)
    file_of: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(shards, start=1):
        progress(f"{activity}, file {number} of {len(shards)}")
        file_name = (
            SINGLE_FILE
            if len(shards) == 1
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        total_bytes += _write_shard(shard, directory / file_name)
        file_of |= dict.fromkeys((tensor.name for tensor in shard), file_name)
    # Readers look for the one or the other: earlier weights of another size must not answer.
    (directory / (INDEX_FILE if len(shards) == 1 else SINGLE_FILE)).unlink(missing_ok=True)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
        write_json(directory / INDEX_FILE, index)


def _plan_shards(tensors: Sequence[UnreadTensor], max_shard_bytes: int) -> list[list[UnreadTensor]]:
    shards: list[list[UnreadTensor]] = [[]]
    shard_bytes = 0
    for tensor in tensors:
        if shards[-1] and shard_bytes + tensor.byte_count > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(tensor)
        shard_bytes += tensor.byte_count
    return shards


def _write_shard(shard: Sequence[UnreadTensor], path: Path) -> int:
    """Write a file; returns the bytes of its tensors, which are in memory no longer."""
    arrays = {tensor.name: tensor.read() for tensor in shard}
    save_file(arrays, path, FILE_METADATA)
    # The library makes it for its owner alone; a directory may be a volume that services share.
    path.chmod(0o644)
    return sum(array.nbytes for array in arrays.values())
