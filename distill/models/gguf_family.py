"""How a family appears in GGUF files. Knows no JAX."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.models.gguf_file import GgufFile


def no_gguf_fields(_file: GgufFile) -> dict[str, Any]:
    """Of a family that has nothing of its own in the metadata."""
    return {}


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """How one family is described in the metadata of llama.cpp's files."""

    architecture: str
    """The `general.architecture`."""

    read: Callable[[GgufFile], dict[str, Any]] = no_gguf_fields
    """The fields of ModelConfig that other families do not have, or not so."""

    understood: frozenset[str] = frozenset()
    """Hyperparameters that are refused in other families' files, and that `read` reads."""
