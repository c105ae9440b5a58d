"""What a model family's files say: one record, which the modules of `distill.families` fill."""

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
    """Hub ids of models whose config.json and names of weights are known to load."""

    features: tuple[str, ...]
    """What it has that others do not."""


def no_gguf_fields(_file: GgufFile) -> dict[str, Any]:
    """For a family whose GGUF metadata has no fields of its own."""
    return {}


@dataclass(frozen=True, kw_only=True)
class GgufFormat:
    """How a family is described in the metadata of llama.cpp's files."""

    architecture: str
    """The `general.architecture`."""

    read: Callable[[GgufFile], dict[str, Any]] = no_gguf_fields
    """Reads the fields of ModelConfig that other families do not have, or do not read so."""

    understood: frozenset[str] = frozenset()
    """Hyperparameters that `read` reads, and that are refused in other families' files."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a model family is stored. What it computes follows from the config that is read: its
    layers' kinds name their mixers and MLPs, and its fields say the rest."""

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
