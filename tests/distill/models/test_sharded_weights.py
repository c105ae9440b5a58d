"""Weights in one file or in several hold the same, and one tensor at a time is in memory."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from distill.models.safetensors_stream import UnreadTensor
from distill.models.sharded_weights import sharded_weight_files, write_sharded_weights


def unread(sizes: dict[str, int]) -> list[UnreadTensor]:
    """Float32 tensors of as many bytes, each filled with its place in the list."""

    def reader(place: int, byte_count: int) -> Callable[[], NDArray[Any]]:
        return lambda: np.full(byte_count // 4, place, np.float32)

    return [
        UnreadTensor(
            name=name, dtype=np.dtype(np.float32), shape=(size // 4,), read=reader(place, size)
        )
        for place, (name, size) in enumerate(sizes.items())
    ]


def names_in_files(directory: Path) -> dict[str, list[str]]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found[path.name] = sorted(file.keys())
    return found


def test_files_are_filled_in_order_and_a_larger_tensor_has_its_own(tmp_path: Path) -> None:
    sizes = {"a": 40, "b": 60, "c": 4, "large": 400, "d": 100, "e": 4}
    lines: list[str] = []
    write_sharded_weights(
        tmp_path, unread(sizes), max_shard_bytes=100, activity="copying", progress=lines.append
    )
    files = {
        f"model-0000{number}-of-00005.safetensors": names
        for number, names in enumerate((["a", "b"], ["c"], ["large"], ["d"], ["e"]), start=1)
    }
    assert names_in_files(tmp_path) == files
    assert lines == [f"copying, file {number} of 5" for number in range(1, 6)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }


def test_what_fits_is_one_file_without_an_index(tmp_path: Path) -> None:
    write_sharded_weights(tmp_path, unread({"a": 40, "b": 60}), max_shard_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    path = tmp_path / "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("b"), np.full(15, 1, np.float32))
    # As the other files of the directory: for all users, where the process lets them.
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(("first", "second"), [(100, 1000), (1000, 100)])
def test_earlier_weights_of_another_size_do_not_answer(
    tmp_path: Path, first: int, second: int
) -> None:
    for max_shard_bytes in (first, second):
        write_sharded_weights(tmp_path, unread({"a": 80, "b": 80}), max_shard_bytes=max_shard_bytes)
    single = (tmp_path / "model.safetensors").exists()
    index = (tmp_path / "model.safetensors.index.json").exists()
    assert (single, index) == (second == 1000, second == 100)


def watched(names: str) -> tuple[list[UnreadTensor], list[set[str]]]:
    """Tensors of 80 bytes, and which of them were in memory whenever one was read."""
    alive: set[str] = set()
    seen: list[set[str]] = []

    def reader(name: str) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            tensor = np.zeros(20, np.float32)
            alive.add(name)
            weakref.finalize(tensor, alive.discard, name)
            seen.append(set(alive))
            return tensor

        return read

    dtype = np.dtype(np.float32)
    tensors = [
        UnreadTensor(name=name, dtype=dtype, shape=(20,), read=reader(name)) for name in names
    ]
    return tensors, seen


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    tensors, seen = watched("abcde")
    write_sharded_weights(tmp_path, tensors, max_shard_bytes=170)
    assert seen == [{"a"}, {"b"}, {"c"}, {"d"}, {"e"}]


def test_a_tensor_is_read_when_its_file_is() -> None:
    tensors, seen = watched("abc")
    files = sharded_weight_files(tensors, max_shard_bytes=80)
    assert len(b"".join(files[-1].pieces)) == files[-1].byte_count  # the index
    assert seen == []
    assert len(b"".join(files[1].pieces)) == files[1].byte_count
    assert seen == [{"b"}]
