"""How a model family is stored: the record that each module of `distill.families` fills."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.formats.gguf_file import GgufFile
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import WeightMap


@dataclass(frozen=True, kw_only=True)
class About:
    """What people are told of a family, in `distill models`."""

    title: str
    """Its name."""

    checkpoints: tuple[str, ...]
    """Hub ids of models whose config.json is in the tests."""

    features: tuple[str, ...]
    """What it has that others do not."""


def no_gguf_fields(_file: GgufFile) -> dict[str, Any]:
    """Of a family whose GGUF metadata has no keys of its own."""
    return {}


@dataclass(frozen=True, kw_only=True)
class GgufFormat:
    """How a family is described in the metadata of llama.cpp's files."""

    architecture: str
    """The `general.architecture`."""

    read: Callable[[GgufFile], dict[str, Any]] = no_gguf_fields
    """The fields of ModelConfig that other families do not have, or read in another way."""

    understood: frozenset[str] = frozenset()
    """Hyperparameters that `read` reads and that other families' files may not have."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a model family is stored.

    What it computes is not said here: it follows from the ModelConfig that `config` reads. There
    the kinds of layers name their mixers and MLPs, and the other fields are their settings.
    """

    about: About
    """For people."""

    config: ConfigFormat
    """Its config.json."""

    weights: WeightMap
    """The names of its tensors, in Hugging Face and in GGUF files."""

    gguf: GgufFormat | None = None
    """Its GGUF files; None: they are not read, or call themselves another family's."""

    @property
    def name(self) -> str:
        """Its key in the registry, and the `model_type` of its config.json."""
        return self.config.model_type
