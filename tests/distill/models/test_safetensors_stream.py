"""A streamed file is the library's, byte for byte, and costs the memory of one tensor."""

import io
import json
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import numpy as library

from distill.models import safetensors_stream
from distill.models.export_file import EXPORT_PIECE_BYTES, ExportFile
from distill.models.safetensors_stream import (
    UnreadTensor,
    read_safetensors,
    safetensors_file,
    stored_dtype,
    unread,
)

DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32"),
    *("uint64", "int64", "float64", ml_dtypes.bfloat16),
]


def arrays_of(dtypes: list[Any]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    found = {}
    for place, dtype in enumerate(dtypes):
        for shape in ((), (3,), (2, 5), (0, 4)):
            values = rng.integers(0, 2, shape)
            found[f"layers.{place}.{len(shape)}.{shape}"] = np.asarray(values).astype(dtype)
    return found


def stream_of(
    arrays: dict[str, NDArray[Any]], metadata: dict[str, str] | None = None
) -> ExportFile:
    return safetensors_file(
        "a.safetensors", [unread(name, array) for name, array in arrays.items()], metadata
    )


CASES = {
    "every type": (arrays_of(DTYPES), {"format": "pt"}),
    "no metadata": (arrays_of(["float32"]), None),
    "nothing": ({}, None),
    "odd names": ({'é"\\\n\u2028': np.ones(1, np.float32), "b\t": np.ones(2, np.float32)}, None),
    **{
        f"a header of {length} letters more": ({"n" * length: np.ones(1, np.int8)}, None)
        for length in range(1, 9)
    },
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_bytes_are_those_of_the_library(case: str) -> None:
    arrays, metadata = CASES[case]
    stream = stream_of(arrays, metadata)
    joined = b"".join(stream.pieces)
    assert joined == library.save(arrays, metadata)
    assert len(joined) == stream.byte_count
    assert int.from_bytes(joined[:8], "little") % 8 == 0


def test_what_the_library_reads_is_what_was_streamed() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int32)}
    loaded = library.load(b"".join(stream_of(arrays).pieces))
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_a_transposed_view_is_written_in_its_own_order() -> None:
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    loaded = library.load(b"".join(stream_of({"a": view}).pieces))
    np.testing.assert_array_equal(loaded["a"], view)


def test_pieces_are_no_larger_than_promised_and_leave_nothing_out() -> None:
    values = np.arange(EXPORT_PIECE_BYTES // 2, dtype=np.float32)
    pieces = list(stream_of({"a": values}).pieces)
    assert [len(piece) for piece in pieces[1:]] == [EXPORT_PIECE_BYTES, EXPORT_PIECE_BYTES]
    assert b"".join(pieces[1:]) == values.tobytes()


def test_one_tensor_is_alive_at_a_time_while_the_reader_keeps_every_piece() -> None:
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
        UnreadTensor(name=name, dtype=dtype, shape=(20,), read=reader(name)) for name in "abcde"
    ]
    kept = list(safetensors_file("a.safetensors", tensors).pieces)
    assert seen == [{"a"}, {"b"}, {"c"}, {"d"}, {"e"}]
    assert alive == set()
    assert len(kept) == 6


def test_the_peak_is_about_one_tensor() -> None:
    tensor_bytes = 8 << 20
    shape = (tensor_bytes // 4,)
    tensors = [
        UnreadTensor(
            name=f"tensor.{place}",
            dtype=np.dtype(np.float32),
            shape=shape,
            read=lambda: np.ones(shape, np.float32),
        )
        for place in range(6)
    ]
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in safetensors_file("a.safetensors", tensors).pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total > 6 * tensor_bytes
    assert peak < 1.5 * tensor_bytes


@pytest.mark.parametrize("read", [np.zeros(3, np.float32), np.zeros(2, np.float64)])
def test_a_tensor_that_is_not_what_was_announced_ends_the_stream(read: NDArray[Any]) -> None:
    tensor = UnreadTensor(name="a", dtype=np.dtype(np.float32), shape=(2,), read=lambda: read)
    with pytest.raises(ValueError, match=r"a: announced as float32 \[2\], read as float"):
        list(safetensors_file("a.safetensors", [tensor]).pieces)


def test_what_the_format_cannot_hold_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="a: the format has no type complex128"):
        stream_of({"a": np.zeros(1, np.complex128)})
    with pytest.raises(ValueError, match="'a' is given twice"):
        safetensors_file("a.safetensors", [unread("a", np.zeros(1)), unread("a", np.zeros(1))])
    with pytest.raises(ValueError, match="type 'F8_E4M3' is not one of"):
        stored_dtype("F8_E4M3")


def open_bytes(tmp_path: Path, content: bytes) -> io.BufferedReader:
    (tmp_path / "file").write_bytes(content)
    return (tmp_path / "file").open("rb")


@pytest.mark.parametrize("case", sorted(CASES))
def test_arrays_of_a_file_come_back(tmp_path: Path, case: str) -> None:
    arrays, metadata = CASES[case]
    with open_bytes(tmp_path, library.save(arrays, metadata)) as file:
        loaded = read_safetensors(file)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert loaded[name].tobytes() == array.tobytes()


def file_of(header: Any, values: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values


def described(**changed: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed}


HOSTILE = {
    "nothing": b"",
    "no header": b"\0" * 8,
    "a header beyond the file": (1 << 62).to_bytes(8, "little"),
    "no JSON": file_of(b"{"),
    "no object": file_of([]),
    "deep JSON": file_of(b"[" * 10**5),
    "no description": file_of({"a": 5}),
    "a missing key": file_of({"a": {"dtype": "F32"}}),
    "an unknown type": file_of(described(dtype="F9"), b"\0" * 8),
    "a type that is no text": file_of(described(dtype=[]), b"\0" * 8),
    "a negative size": file_of(described(shape=[-1, -2]), b"\0" * 8),
    "a size that is no number": file_of(described(shape=["2"]), b"\0" * 8),
    "a shape of another size": file_of(described(shape=[3]), b"\0" * 8),
    "a shape that no memory holds": file_of(
        described(shape=[1 << 60], data_offsets=[0, 1 << 62]), b"\0" * 8
    ),
    "values that are cut short": file_of(described(), b"\0" * 7),
    "values that go on": file_of(described(), b"\0" * 9),
    "a gap": file_of(described(data_offsets=[4, 12]), b"\0" * 12),
    "a place beyond the end": file_of(described(data_offsets=[4, 12]), b"\0" * 8),
    "two in one place": file_of(described() | {"b": described()["a"]}, b"\0" * 16),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_what_is_no_such_file_is_refused(tmp_path: Path, case: str) -> None:
    with open_bytes(tmp_path, HOSTILE[case]) as file, pytest.raises(ValueError, match=r"."):
        read_safetensors(file)


def test_a_header_longer_than_the_library_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_stream, "MAX_HEADER_BYTES", 8)
    with (
        open_bytes(tmp_path, file_of(described(), b"\0" * 8)) as file,
        pytest.raises(ValueError, match="cannot have a header"),
    ):
        read_safetensors(file)
