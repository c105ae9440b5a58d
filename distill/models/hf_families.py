"""The families' files by name: config.json and weight names. Knows no JAX; see `families`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError
from distill.models.config import ModelConfig
from distill.models.gemma3.config import GEMMA3
from distill.models.gemma3.gguf import GEMMA3_GGUF
from distill.models.gemma3.weights import GEMMA3_WEIGHTS
from distill.models.gguf_family import GgufFamily
from distill.models.hf_config import (
    HfFamily,
    parse_decoder_config,
    parse_wrapped_config,
    to_hf_config,
)
from distill.models.llama.config import LLAMA
from distill.models.llama.weights import LLAMA_WEIGHTS
from distill.models.mistral.config import MISTRAL
from distill.models.mistral.weights import MISTRAL_WEIGHTS
from distill.models.qwen2.config import QWEN2
from distill.models.qwen2.weights import QWEN2_WEIGHTS
from distill.models.qwen3.config import QWEN3
from distill.models.qwen3.weights import QWEN3_WEIGHTS
from distill.models.qwen3_5.config import QWEN3_5
from distill.models.qwen3_5.weights import QWEN3_5_WEIGHTS
from distill.models.qwen3_5_moe.config import QWEN3_5_MOE
from distill.models.qwen3_5_moe.weights import QWEN3_5_MOE_WEIGHTS
from distill.models.qwen3_moe.config import QWEN3_MOE
from distill.models.qwen3_moe.weights import QWEN3_MOE_WEIGHTS
from distill.models.smollm3.config import SMOLLM3
from distill.models.smollm3.gguf import SMOLLM3_GGUF
from distill.models.smollm3.weights import SMOLLM3_WEIGHTS
from distill.models.weight_map import WeightEntry, WeightMap, weight_entries


@dataclass(frozen=True, kw_only=True)
class FamilyFiles:
    """How a family is stored."""

    config: HfFamily
    """Its config.json."""

    weights: WeightMap
    """Its tensors."""

    gguf: GgufFamily | None = None
    """Its GGUF files; None: they are not read, or are another family's."""


FAMILY_FILES = {
    files.config.family: files
    for files in (
        FamilyFiles(config=LLAMA, weights=LLAMA_WEIGHTS, gguf=GgufFamily(architecture="llama")),
        FamilyFiles(config=QWEN2, weights=QWEN2_WEIGHTS, gguf=GgufFamily(architecture="qwen2")),
        FamilyFiles(config=QWEN3, weights=QWEN3_WEIGHTS, gguf=GgufFamily(architecture="qwen3")),
        FamilyFiles(config=MISTRAL, weights=MISTRAL_WEIGHTS),
        FamilyFiles(config=SMOLLM3, weights=SMOLLM3_WEIGHTS, gguf=SMOLLM3_GGUF),
        FamilyFiles(config=GEMMA3, weights=GEMMA3_WEIGHTS, gguf=GEMMA3_GGUF),
        FamilyFiles(config=QWEN3_MOE, weights=QWEN3_MOE_WEIGHTS),
        FamilyFiles(config=QWEN3_5, weights=QWEN3_5_WEIGHTS),
        FamilyFiles(config=QWEN3_5_MOE, weights=QWEN3_5_MOE_WEIGHTS),
    )
}


def family_files(family: str) -> FamilyFiles:
    """The files of a family.

    Raises:
        ModelError: there is none of that name.
    """
    if family not in FAMILY_FILES:
        known = ", ".join(FAMILY_FILES)
        raise ModelError(f"model family {family!r} is not supported; supported: {known}")
    return FAMILY_FILES[family]


def family_of_gguf(architecture: str) -> str:
    """The family of the GGUF files of an architecture.

    Raises:
        ModelError: there is none.
    """
    families = {
        files.gguf.architecture: family
        for family, files in FAMILY_FILES.items()
        if files.gguf is not None
    }
    if architecture not in families:
        known = ", ".join(families)
        raise ModelError(f"GGUF architecture {architecture!r} is not supported; supported: {known}")
    return families[architecture]


@dataclass(frozen=True, kw_only=True)
class FamilyDescription:
    """A family as `distill models` lists it."""

    title: str
    """Its name."""

    model_types: tuple[str, ...]
    """Values of `model_type` in config.json."""

    gguf_architecture: str | None
    """The `general.architecture` of its GGUF files; None: they are not read, or another's."""

    checkpoints: tuple[str, ...]
    """Hub ids of models whose form is known to load."""

    features: tuple[str, ...]
    """What it has that others do not."""


def describe_families() -> tuple[FamilyDescription, ...]:
    """All families, as their folders describe them."""
    return tuple(
        FamilyDescription(
            title=config.about.title,
            model_types=(config.family, *([config.wrapper.model_type] if config.wrapper else [])),
            gguf_architecture=files.gguf.architecture if files.gguf else None,
            checkpoints=config.about.checkpoints,
            features=config.about.features,
        )
        for files in FAMILY_FILES.values()
        for config in (files.config,)
    )


def parse_hf_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a config.json.

    Raises:
        ModelError: what is missing, wrong, unknown or not supported, by name.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("config.json: model_type is missing")
    wrapped = {
        files.config.wrapper.model_type: files.config
        for files in FAMILY_FILES.values()
        if files.config.wrapper is not None
    }
    if model_type in wrapped and model_type not in FAMILY_FILES:
        return parse_wrapped_config(raw, wrapped[model_type])
    if model_type not in FAMILY_FILES:
        known = ", ".join(dict.fromkeys([*FAMILY_FILES, *wrapped]))
        raise ModelError(
            f"config.json: model_type {model_type!r} is not supported; supported: {known}"
        )
    return parse_decoder_config(raw, FAMILY_FILES[model_type].config)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Write a config.json; the inverse of `parse_hf_config`. Token ids are the caller's to add."""
    return to_hf_config(config, family_files(config.family).config)


def model_weight_entries(config: ModelConfig) -> tuple[WeightEntry, ...]:
    """All tensors of a model."""
    return tuple(weight_entries(family_files(config.family).weights, config))
