"""Safetensors of a Hugging Face directory into the parameter tree. Knows no JAX.

One tensor at a time: the peak is the tree in the compute dtype and one tensor.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray

from distill.errors import ModelError
from distill.families.registry import family_named, model_weight_entries
from distill.files import read_json_object
from distill.formats.expert_weights import split_fused_experts
from distill.formats.weight_map import WeightMap
from distill.models.sharded_weights import INDEX_FILE, SINGLE_FILE
from distill.network.config import ModelConfig

_LOGGER = logging.getLogger(__name__)

_ALIGNMENT = 64
"""Bytes. JAX on a CPU takes host memory that begins at a multiple of it as it is."""

_STRIP = 16
"""Rows that are transposed at a time. NumPy transposes a whole matrix value by value across memory,
up to seven times as slowly."""

FLOAT_TYPES: tuple[Any, ...] = (np.float32, np.float16, ml_dtypes.bfloat16)


def read_weights(
    directory: Path, config: ModelConfig, tree: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Fill a parameter tree from the directory's safetensors, single or sharded.

    Args:
        directory: holds model.safetensors, or shards and their index.
        config: of the same directory.
        tree: the parameters' shapes and dtypes, nested as the parameters are.

    Returns:
        The tree with NumPy arrays, and a digest of the weights as stored: of names, types, shapes
        and bytes, whatever files they are spread over.

    Raises:
        ModelError: a tensor is missing, unknown, of a wrong shape, or not of a float type.
    """
    parameters = _allocate(tree)
    digest = hashlib.blake2b(digest_size=16)
    with ExitStack() as stack:
        # Hashing takes half of the time and releases Python's lock: a thread does it meanwhile.
        beside = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        entries = {entry.hf_name: entry for entry in model_weight_entries(config)}
        files = open_weights(directory, config, stack)
        # Sorted: the digest must not depend on the layout of the files.
        for name in sorted(entries):
            entry = entries[name]
            file, stored_name = files[name]
            tensor = file.get_tensor(stored_name)
            if tensor.dtype not in FLOAT_TYPES:
                raise ModelError(f"{name}: type {tensor.dtype} is not float32, float16 or bfloat16")
            target = _leaf(parameters, entry.path)[entry.index]
            expected = target.shape[::-1] if entry.is_transposed else target.shape
            if tensor.shape != expected:
                raise ModelError(
                    f"{name}: the configuration asks for shape {list(expected)}, "
                    f"the file has {list(tensor.shape)}"
                )
            digest.update(f"{name}:{tensor.dtype}:{tensor.shape}:".encode())
            stored_bytes = np.ascontiguousarray(tensor).view(np.uint8).data
            hashed = beside.submit(digest.update, stored_bytes)
            if entry.is_transposed:
                _write_transposed(target, tensor)
            else:
                target[...] = tensor
            hashed.result()
            # Or else the tensor would be in memory while the next one is read.
            del tensor, stored_bytes, hashed
    return parameters, digest.hexdigest()


def open_weights(
    directory: Path, config: ModelConfig, stack: ExitStack
) -> dict[str, tuple[Any, str]]:
    """The tensors of a model, by the names that `model_weight_entries` has for them.

    Args:
        directory: holds model.safetensors, or shards and their index.
        config: of the same directory.
        stack: closes the files.

    Returns:
        The open file of each, and its name there.

    Raises:
        ModelError: a tensor is missing, unknown, or there twice.
    """
    weight_map = family_named(config.family).weights
    files, skipped = _text_names(_open_files(directory, stack), weight_map)
    files = split_fused_experts(files)
    wanted = {entry.hf_name for entry in model_weight_entries(config)}
    _check_names(set(files), wanted, tied_head=config.tied_head)
    if skipped:
        _LOGGER.warning(
            "skipped %d tensors that are not of the text model (%s)",
            len(skipped),
            ", ".join(prefix + "*" for prefix in weight_map.skipped_prefixes),
        )
    return files


def _text_names(
    files: Mapping[str, Any], weight_map: WeightMap
) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """The tensors of the text model, and the names of the other tensors.

    The first are by the name that they have in a file of the text model alone; each comes with its
    open file and its name there.
    """
    found: dict[str, tuple[Any, str]] = {}
    skipped = []
    for stored_name, file in files.items():
        if stored_name.startswith(weight_map.skipped_prefixes):
            skipped.append(stored_name)
            continue
        name = stored_name
        for prefix, meaning in weight_map.text_prefixes.items():
            if stored_name.startswith(prefix):
                name = meaning + stored_name.removeprefix(prefix)
                break
        if name in found:
            raise ModelError(
                f"the weights have {name} twice, as {found[name][1]} and {stored_name}"
            )
        found[name] = file, stored_name
    return found, skipped


def _open_files(directory: Path, stack: ExitStack) -> dict[str, Any]:
    """Each tensor's name with the open file that holds it."""
    if (directory / INDEX_FILE).is_file():
        index = read_json_object(directory / INDEX_FILE)
        file_names = sorted(set(index["weight_map"].values()))
    elif (directory / SINGLE_FILE).is_file():
        file_names = [SINGLE_FILE]
    else:
        raise ModelError(f"the model directory has neither {SINGLE_FILE} nor {INDEX_FILE}")
    files: dict[str, Any] = {}
    for file_name in file_names:
        # An index comes with the weights: it must not point out of the directory.
        if Path(file_name).name != file_name:
            raise ModelError(f"{INDEX_FILE}: {file_name!r} is not a file name")
        if not (directory / file_name).is_file():
            raise ModelError(f"the model directory has no {file_name}, which its index names")
        try:
            opened = stack.enter_context(
                safetensors.safe_open(directory / file_name, framework="numpy")
            )
        except safetensors.SafetensorError as error:
            raise ModelError(f"{file_name} cannot be read: {error}") from error
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            if name in files:
                raise ModelError(f"{file_name} has {name}, which another file has as well")
            files[name] = opened
    return files


def _check_names(present: set[str], wanted: set[str], *, tied_head: bool) -> None:
    missing = sorted(wanted - present)
    if missing:
        raise ModelError(f"the weights lack {missing[0]} ({len(missing)} tensors in all)")
    # Two tensors are ignored, as Transformers ignores them: the rotary frequencies in old files,
    # which follow from the configuration, and a tied model's lm_head, a copy of the embedding.
    unknown = sorted(
        name
        for name in present - wanted
        if not name.endswith(".rotary_emb.inv_freq")
        and not (tied_head and name == "lm_head.weight")
    )
    if unknown:
        raise ModelError(f"the weights have an unknown {unknown[0]} ({len(unknown)} in all)")


def _allocate(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _allocate(value) if isinstance(value, Mapping) else _aligned(value.shape, value.dtype)
        for key, value in tree.items()
    }


def _aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array that JAX on a CPU takes as it is, without a copy."""
    byte_count = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(byte_count + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array: NDArray[Any] = memory[start : start + byte_count].view(dtype).reshape(shape)
    return array


def _write_transposed(target: NDArray[Any], tensor: NDArray[Any]) -> None:
    """Write tensor.T, of any number of axes."""
    for start in range(0, len(tensor), _STRIP):
        target[..., start : start + _STRIP] = tensor[start : start + _STRIP].T


def _leaf(tree: Mapping[str, Any], path: tuple[str, ...]) -> NDArray[Any]:
    node: Any = tree
    for key in path:
        node = node[key]
    leaf: NDArray[Any] = node
    return leaf


def leaves(tree: Mapping[str, Any]) -> Iterator[Any]:
    """The arrays of a parameter tree."""
    for value in tree.values():
        if isinstance(value, Mapping):
            yield from leaves(value)
        else:
            yield value
