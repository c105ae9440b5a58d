"""The families' files by name: config.json and weight names. Knows no JAX; see `families`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import ModelError
from distill.models.config import ModelConfig
from distill.models.hf_config import HfFamily, parse_decoder_config, to_hf_config
from distill.models.llama.config import LLAMA
from distill.models.llama.weights import LLAMA_WEIGHTS
from distill.models.qwen3.config import QWEN3
from distill.models.qwen3.weights import QWEN3_WEIGHTS
from distill.models.weight_map import WeightEntry, WeightMap, weight_entries


@dataclass(frozen=True, kw_only=True)
class FamilyFiles:
    """How a family is stored."""

    config: HfFamily
    """Its config.json."""

    weights: WeightMap
    """Its tensors."""


FAMILY_FILES = {
    "llama": FamilyFiles(config=LLAMA, weights=LLAMA_WEIGHTS),
    "qwen3": FamilyFiles(config=QWEN3, weights=QWEN3_WEIGHTS),
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


def parse_hf_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a config.json.

    Raises:
        ModelError: what is missing, wrong or not supported, by name.
    """
    family = raw.get("model_type")
    if not isinstance(family, str):
        raise ModelError("config.json: model_type is missing")
    return parse_decoder_config(raw, family_files(family).config)


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Write a config.json; the inverse of `parse_hf_config`. Token ids are the caller's to add."""
    return to_hf_config(config, family_files(config.family).config)


def model_weight_entries(config: ModelConfig) -> tuple[WeightEntry, ...]:
    """All tensors of a model."""
    weights = family_files(config.family).weights
    return tuple(
        weight_entries(weights, layer_count=config.layer_count, tied_head=config.tied_head)
    )
