"""All model families by name. Knows no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError
from distill.families.gemma3 import GEMMA3
from distill.families.llama import LLAMA
from distill.families.mistral import MISTRAL
from distill.families.qwen2 import QWEN2
from distill.families.qwen3 import QWEN3
from distill.families.qwen3_5 import QWEN3_5
from distill.families.qwen3_5_moe import QWEN3_5_MOE
from distill.families.qwen3_moe import QWEN3_MOE
from distill.families.smollm3 import SMOLLM3
from distill.formats.family import Family
from distill.formats.hf_config import parse_decoder_config, parse_wrapped_config, to_hf_config
from distill.formats.weight_map import WeightEntry, weight_entries
from distill.network.config import ModelConfig

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        LLAMA,
        QWEN2,
        QWEN3,
        MISTRAL,
        SMOLLM3,
        GEMMA3,
        QWEN3_MOE,
        QWEN3_5,
        QWEN3_5_MOE,
    )
}
"""By the `model_type` of config.json. A new family is registered here and nowhere else."""


def family_named(name: str) -> Family:
    """A family.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"model family {name!r} is not supported; supported: {known}")
    return FAMILIES[name]


def family_of_gguf(architecture: str) -> Family:
    """The family of the GGUF files of an architecture.

    Raises:
        ModelError: there is none.
    """
    families = {family.gguf.architecture: family for family in FAMILIES.values() if family.gguf}
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
    """The `general.architecture` of its GGUF files; None: they are not read, or call themselves
    another family's."""

    checkpoints: tuple[str, ...]
    """Hub ids of models whose config.json is in the tests."""

    features: tuple[str, ...]
    """What it has that others do not."""


def describe_families() -> tuple[FamilyDescription, ...]:
    """All families, as their modules describe them, in the order of the registry."""
    return tuple(
        FamilyDescription(
            title=family.about.title,
            model_types=(
                family.name,
                *([family.config.wrapper.model_type] if family.config.wrapper else []),
            ),
            gguf_architecture=family.gguf.architecture if family.gguf else None,
            checkpoints=family.about.checkpoints,
            features=family.about.features,
        )
        for family in FAMILIES.values()
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
        family.config.wrapper.model_type: family.config
        for family in FAMILIES.values()
        if family.config.wrapper is not None
    }
    if model_type in wrapped and model_type not in FAMILIES:
        return parse_wrapped_config(raw, wrapped[model_type])
    if model_type not in FAMILIES:
        known = ", ".join(dict.fromkeys([*FAMILIES, *wrapped]))
        raise ModelError(
            f"config.json: model_type {model_type!r} is not supported; supported: {known}"
        )
    return parse_decoder_config(raw, FAMILIES[model_type].config)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `parse_hf_config`. The caller adds the token ids, which the tokenizer has."""
    return to_hf_config(config, family_named(config.family).config)


def model_weight_entries(config: ModelConfig) -> tuple[WeightEntry, ...]:
    """All tensors of a model, in the order of the forward pass."""
    return tuple(weight_entries(family_named(config.family).weights, config))
