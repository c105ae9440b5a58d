"""A smaller model from some of the layers of another. Knows no JAX.

The tensors are copied as they are stored, but experts that are stored together are written each by
itself. config.json keeps all that it says about other things than layers.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import ModelError
from distill.families.registry import family_named, model_weight_entries, parse_hf_config
from distill.files import check_vacant, new_directory, read_json_object, write_json
from distill.models.hf_weights import open_weights
from distill.models.layer_choice import check_layers, parse_layers
from distill.models.progress import Progress, say_nothing
from distill.models.resolve import resolve_reference
from distill.models.safetensors_stream import UnreadTensor, stored_dtype
from distill.models.sharded_weights import INDEX_FILE, MAX_SHARD_BYTES, write_sharded_weights
from distill.network.config import ModelConfig

RECORD_FILE = "pruning.json"
"""Says in the new directory where its layers come from."""

_LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")

_OTHER_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
"""What a model directory holds besides weights: tokenizer, chat template, token ids."""

_MADE_ANEW = ("config.json", INDEX_FILE, RECORD_FILE)


def prune(
    reference: str,
    keep_layers: str,
    destination: Path,
    *,
    cache_dir: Path | None = None,
    progress: Progress = say_nothing,
) -> tuple[int, ...]:
    """Write a model that has only some of the layers of another.

    Args:
        reference: the model, as in `load_model`.
        keep_layers: which layers stay, as in `parse_layers`: "15" or "0-6,22-29".
        destination: the Hugging Face directory to make; its parent is made where needed.
        cache_dir: as in `load_model`.
        progress: called with a line of text at each step.

    Returns:
        The layers that stayed, as they are counted in the model.

    Raises:
        AlreadyExistsError: the destination exists and is not an empty directory.
        InvalidFieldError: layers that the model does not have, twice, or none.
        ModelError: there is no such model, it is a part of a larger one, or a tensor is missing or
            unknown.
    """
    check_vacant(destination)  # before the model is downloaded or converted
    source = resolve_reference(reference, cache_dir, progress)
    raw = read_json_object(source.directory / "config.json")
    whole = parse_hf_config(raw)
    layers = parse_layers(keep_layers, whole.layer_count)
    pruned = pruned_config(raw, layers)
    with new_directory(destination) as directory:
        for pattern in _OTHER_FILES:
            for path in source.directory.glob(pattern):
                if path.name not in _MADE_ANEW:
                    shutil.copyfile(path, directory / path.name)
        write_json(directory / "config.json", pruned)
        write_json(
            directory / RECORD_FILE,
            {"source": source.name, "source_layer_count": whole.layer_count, "kept_layers": layers},
        )
        _copy_weights(source.directory, directory, whole, layers, progress)
    return layers


def pruned_config(raw: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The config.json of a model with only some of its layers, each of its own kind.

    Where the kind of a layer follows from its place, the kinds are written out, for the places
    change.

    Raises:
        InvalidFieldError: layers that the model does not have, twice, or none.
        ModelError: the model is a part of a larger one, or of a kind that is not supported.
    """
    if "text_config" in raw:
        raise ModelError(
            "config.json: text_config: only a text model by itself can be pruned, this one is a "
            "part of a larger model"
        )
    whole = parse_hf_config(raw)
    check_layers(layers, whole.layer_count)
    wanted = whole.with_layers(layers)
    pruned = {**raw, "num_hidden_layers": len(layers)} | {
        name: [raw[name][layer] for layer in layers] for name in _LISTS_OF_LAYERS if raw.get(name)
    }
    if not _describes(pruned, wanted):
        pruned |= family_named(whole.family).config.write(wanted)
    if not _describes(pruned, wanted):
        raise ModelError(
            f"config.json: a {whole.family} model of layers {list(layers)} of "
            f"{whole.layer_count} cannot be written as one"
        )
    return pruned


_LISTS_OF_LAYERS = ("layer_types", "no_rope_layers")
"""Keys of config.json that have an entry for each layer."""


def _describes(raw: Mapping[str, Any], wanted: ModelConfig) -> bool:
    try:
        return parse_hf_config(raw).with_layers(range(wanted.layer_count)) == wanted
    except ModelError:
        return False


def _copy_weights(
    source: Path,
    directory: Path,
    whole: ModelConfig,
    layers: Sequence[int],
    progress: Progress,
) -> None:
    def old_name(name: str) -> str:
        return _LAYER.sub(lambda found: str(layers[int(found[0])]), name, count=1)

    with ExitStack() as stack:
        files = open_weights(source, whole, stack)
        tensors = []
        for entry in model_weight_entries(whole.with_layers(layers)):
            file, stored_name = files[old_name(entry.hf_name)]
            stored = file.get_slice(stored_name)
            try:
                dtype = stored_dtype(stored.get_dtype())
            except ValueError as error:
                raise ModelError(f"{entry.hf_name}: {error}") from error
            tensors.append(
                UnreadTensor(
                    name=entry.hf_name,
                    dtype=dtype,
                    shape=tuple(stored.get_shape()),
                    read=partial(file.get_tensor, stored_name),
                )
            )
        write_sharded_weights(
            directory,
            tensors,
            max_shard_bytes=MAX_SHARD_BYTES,
            activity="copying weights",
            progress=progress,
        )
