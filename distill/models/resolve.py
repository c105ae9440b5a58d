"""From a model reference to a directory with the model in Hugging Face form. Knows no JAX."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from distill.errors import ModelError
from distill.models.convert import convert_once
from distill.models.progress import Progress, say_nothing
from distill.models.references import EMBEDDED_NAME, HUB_ID, embedded_gguf, model_cache

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
"""What a model directory needs; a repository may also hold the same weights in other formats."""


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model on this machine's disk."""

    name: str
    """For people."""

    directory: Path
    """In Hugging Face form."""


def resolve_reference(
    reference: str,
    cache_dir: Path | None = None,
    progress: Progress = say_nothing,
) -> ResolvedModel:
    """Find, and where needed convert or download, a model.

    Args:
        reference: a directory, a `.gguf` file, "smollm2-135m", or a hub id.
        cache_dir: as in `load_model`.
        progress: called with a line of text at each step of a conversion.

    Raises:
        ModelError: there is no such model, or it cannot be converted or downloaded.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return ResolvedModel(name=path.resolve().name, directory=path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {path.name!r} at the path given")
        directory = convert_once(path, model_cache(cache_dir), progress)
        return ResolvedModel(name=path.stem, directory=directory)
    if reference == EMBEDDED_NAME:
        directory = convert_once(embedded_gguf(), model_cache(cache_dir), progress)
        return ResolvedModel(name=EMBEDDED_NAME, directory=directory)
    if HUB_ID.fullmatch(reference):
        return ResolvedModel(name=reference, directory=_download(reference))
    raise ModelError(
        f"model {Path(reference).name!r}: not a directory, a .gguf file, {EMBEDDED_NAME!r}, "
        'or a hub id like "organisation/name"'
    )


def _download(hub_id: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
        # Imported by name: the package imports its modules only when they are first used.
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ModelError(
            f"model {hub_id!r} is a hub id, which needs: pip install 'topk-distill[hub]'"
        ) from error
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"model {hub_id!r} is not on the hub, or needs an account that may read it (HF_TOKEN)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {hub_id!r} cannot be downloaded (no connection to the hub?), and no earlier "
            "download of it is complete"
        ) from error
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise ModelError(
            f"model {hub_id!r} cannot be downloaded ({type(error).__name__})"
        ) from error
