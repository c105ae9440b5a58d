"""GGUF to a Hugging Face model directory, in float32. Knows no JAX.

A conversion is written aside and renamed when it is whole: one that is killed leaves nothing that
could be taken for a model.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import ModelError
from distill.families.registry import family_named, hf_config, model_weight_entries
from distill.files import directory_aside, locked, make_directory, new_directory, write_json
from distill.formats.gguf_file import GgufFile
from distill.formats.gguf_tokenizer import rebuild_tokenizer
from distill.formats.gguf_tokens import token_by_role
from distill.formats.weight_map import WeightEntry
from distill.models.gguf_config import ROPE_FACTORS, parse_gguf_config
from distill.models.progress import Progress, say_nothing
from distill.models.references import EMBEDDED_NAME, embedded_gguf
from distill.models.safetensors_stream import UnreadTensor
from distill.models.sharded_weights import MAX_SHARD_BYTES, write_sharded_weights
from distill.network.config import ModelConfig

CONVERSION_VERSION = 1
"""Raised when conversions change, so that older ones in caches are not used."""


def convert(source: str, destination: Path, progress: Progress = say_nothing) -> None:
    """Convert a model into a directory that this project and Transformers load.

    Args:
        source: a `.gguf` file, or "smollm2-135m".
        destination: the directory to make; its parent is made where needed.
        progress: called with a line of text at each step.

    Raises:
        AlreadyExistsError: the destination exists and is not an empty directory.
        ModelError: the source is no GGUF file, or of a kind not supported.
    """
    path = embedded_gguf() if source == EMBEDDED_NAME else Path(source).expanduser()
    if path.suffix != ".gguf" or not path.is_file():
        raise ModelError(f"{path.name!r} is not a .gguf file, nor {EMBEDDED_NAME!r}")
    with new_directory(destination) as directory:
        _write_directory(path, directory, progress)
    progress("done")


def convert_once(source: Path, cache: Path, progress: Progress = say_nothing) -> Path:
    """The directory in a cache that holds a GGUF file's conversion, which is made if it is absent.

    The name of the directory holds a digest of the file: another file under the same name is
    another model. Of processes that ask at once one converts, and the others wait for it.

    Args:
        source: the GGUF file.
        cache: directory of conversions; made where needed.
        progress: called with a line of text at each step.

    Raises:
        ModelError: the file is of a kind not supported.
    """
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    target = cache / f"{source.stem}-{digest}-v{CONVERSION_VERSION}"
    if target.is_dir():
        return target
    make_directory(cache)
    with locked(target):
        if not target.is_dir():
            with directory_aside(target) as directory:
                _write_directory(source, directory, progress)
            progress("done")
    return target


def _write_directory(source: Path, directory: Path, progress: Progress) -> None:
    progress(f"reading {source.name}")
    file = GgufFile(source)
    config = parse_gguf_config(file)
    progress("rebuilding the tokenizer")
    tokenizer = rebuild_tokenizer(file)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", _tokenizer_config(file, config))
    token_ids = _token_ids(file)
    write_json(directory / "config.json", {**hf_config(config), "dtype": "float32", **token_ids})
    write_json(directory / "generation_config.json", token_ids)
    _write_weights(file, config, directory, progress)


def _tokenizer_config(file: GgufFile, config: ModelConfig) -> dict[str, Any]:
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    tokens = {f"{name}_token": token_by_role(file, role) for name, role in roles.items()}
    return {
        # The class that takes tokenizer.json as it is; a family's own may rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_count,
        **{name: token for name, token in tokens.items() if token is not None},
        "chat_template": file.metadata.get("tokenizer.chat_template", ""),
    }


def _token_ids(file: GgufFile) -> dict[str, Any]:
    """bos_token_id, eos_token_id (all ids that end a turn or a text) and pad_token_id."""
    metadata = file.metadata
    ends = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    token_ids = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [token_id for token_id in dict.fromkeys(ends) if token_id is not None],
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return {name: value for name, value in token_ids.items() if value not in (None, [])}


def _write_weights(
    file: GgufFile, config: ModelConfig, directory: Path, progress: Progress
) -> None:
    entries = model_weight_entries(config)
    known = {entry.gguf_name for entry in entries} | {ROPE_FACTORS}
    unknown = sorted(file.tensor_names - known)
    if unknown:
        raise ModelError(
            f"the GGUF file has an unknown tensor {unknown[0]} ({len(unknown)} in all)"
        )
    tensors = [
        UnreadTensor(
            name=entry.hf_name,
            dtype=np.dtype(np.float32),
            shape=tuple(file.shape(entry.gguf_name)),
            read=partial(_hf_tensor, file, config, entry),
        )
        for entry in entries
    ]
    write_sharded_weights(
        directory,
        tensors,
        max_shard_bytes=MAX_SHARD_BYTES,
        activity="converting weights",
        progress=progress,
    )


def _hf_tensor(file: GgufFile, config: ModelConfig, entry: WeightEntry) -> NDArray[np.float32]:
    tensor = file.tensor(entry.gguf_name)
    weights = family_named(config.family).weights
    if entry.path[-1] == "scale" and weights.gguf_norm_offset:
        tensor = tensor - np.float32(weights.gguf_norm_offset)
    gguf_part = entry.gguf_name.removesuffix(".weight").rpartition(".")[2]
    if gguf_part not in weights.gguf_rotary_permuted:
        return tensor
    # llama.cpp turns the components 2i and 2i + 1 of a head together, Transformers i and
    # i + head_dim / 2.
    pairs = tensor.reshape(-1, config.head_dim // 2, 2, tensor.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)
