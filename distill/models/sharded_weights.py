"""The weights of a Hugging Face directory: one safetensors file, or several and an index.

Weights are larger than memory may be: each tensor is read when it is written.
"""

from collections.abc import Container, Sequence
from pathlib import Path

from distill.models.export_file import ExportFile, json_file, write_file
from distill.models.progress import Progress, say_nothing
from distill.models.safetensors_stream import UnreadTensor, safetensors_file

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_SHARD_BYTES = 2 << 30
"""Largest file of weights that is written: readers may hold a whole one in memory."""

FILE_METADATA = {"format": "pt"}
"""Transformers reads only files that say which library's layout they have."""


def sharded_weight_files(
    tensors: Sequence[UnreadTensor], *, max_shard_bytes: int
) -> list[ExportFile]:
    """The files that hold tensors, each of which is read when its file is: first the weights, then
    the index, if there are several.

    Args:
        tensors: in the order in which they fill the files.
        max_shard_bytes: weights beyond this are spread over several files and an index. A larger
            tensor has a file of its own.
    """
    shards = _plan_shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        return [safetensors_file(SINGLE_FILE, shards[0], FILE_METADATA)]
    names = [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    index = {
        "metadata": {"total_size": sum(tensor.byte_count for tensor in tensors)},
        "weight_map": {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        },
    }
    files = [
        safetensors_file(name, shard, FILE_METADATA)
        for name, shard in zip(names, shards, strict=True)
    ]
    return [*files, json_file(INDEX_FILE, index)]


def write_sharded_weights(
    directory: Path,
    tensors: Sequence[UnreadTensor],
    *,
    max_shard_bytes: int,
    activity: str = "writing weights",
    progress: Progress = say_nothing,
) -> None:
    """Write tensors into a directory, which must be there; earlier weights in it are replaced.

    Args:
        directory: where the files go.
        tensors: as in `sharded_weight_files`.
        max_shard_bytes: as in `sharded_weight_files`.
        activity: what is being done, for the lines of progress.
        progress: called with a line of text at each file of weights.
    """
    files = sharded_weight_files(tensors, max_shard_bytes=max_shard_bytes)
    count = sum(file.name != INDEX_FILE for file in files)
    for number, file in enumerate(files, start=1):
        if number <= count:
            progress(f"{activity}, file {number} of {count}")
        write_file(file, directory)
    remove_other_weights(directory, {file.name for file in files})


def remove_other_weights(directory: Path, written: Container[str]) -> None:
    """Remove the one file where an index was written, and the index where the one file was.

    Readers look for the one or the other: earlier weights of another size must not answer.
    """
    other = INDEX_FILE if SINGLE_FILE in written else SINGLE_FILE
    (directory / other).unlink(missing_ok=True)


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
