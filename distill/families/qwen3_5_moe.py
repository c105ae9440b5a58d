"""Qwen3.5 whose MLPs are mixtures of experts, each beside an expert that all tokens visit.

Everything but the MLPs is that of `qwen3_5`. GGUF files of it are not read.
"""

from typing import Any

from distill.families.qwen3_5 import (
    DEFAULTS,
    FEATURES,
    MTP_KEYS,
    NEUTRAL,
    SKIPPED_PREFIXES,
    TEXT_PREFIXES,
    TRAITS,
    VISION_KEYS,
    mixer_weights,
    read_layers,
    read_partial_rope,
    write_layers,
    write_partial_rope,
)
from distill.formats.config_reader import ConfigReader
from distill.formats.expert_weights import sparse_mlp_weights
from distill.formats.family import About, Family
from distill.formats.hf_config import ConfigFormat, HfWrapper
from distill.formats.weight_map import MLP_NORM, LayerWeight, WeightMap
from distill.network.config import ModelConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.layer_kinds import LayerKind

_EXPERT_KEYS = {
    "expert_count": "num_experts",
    "choice_count": "num_experts_per_tok",
    "expert_size": "moe_intermediate_size",
    "shared_expert_size": "shared_expert_intermediate_size",
}


def _read(reader: ConfigReader) -> dict[str, Any]:
    sizes = {field: reader.integer(key) for field, key in _EXPERT_KEYS.items()}
    return {
        **read_layers(reader, mlp="sparse"),
        "experts": ExpertsConfig(is_normalized=True, **sizes),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    experts = {key: getattr(config.experts, field) for field, key in _EXPERT_KEYS.items()}
    return {**write_layers(config), **experts}


_CONFIG = ConfigFormat(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        # No layer has a dense MLP, and its width is not said.
        "intermediate_size": 512,
    },
    traits=TRAITS,
    read_rope=read_partial_rope,
    write_rope=write_partial_rope,
    read=_read,
    write=_write,
    neutral=NEUTRAL,
    # The loss that spreads tokens over experts belongs to pre-training.
    irrelevant=MTP_KEYS | {"router_aux_loss_coef", "output_router_logits"},
    wrapper=HfWrapper(
        model_type="qwen3_5_moe",
        architecture="Qwen3_5MoeForConditionalGeneration",
        irrelevant=VISION_KEYS,
    ),
)


def _layer_weights(config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    return (*mixer_weights(kind), MLP_NORM, *sparse_mlp_weights(config))


_WEIGHTS = WeightMap(
    layer_weights=_layer_weights,
    text_prefixes=TEXT_PREFIXES,
    skipped_prefixes=SKIPPED_PREFIXES,
)


QWEN3_5_MOE = Family(
    about=About(
        title="Qwen3.5 MoE (text)",
        checkpoints=("Qwen/Qwen3.5-35B-A3B",),
        features=(*FEATURES, "mixtures of experts, with one that all tokens visit"),
    ),
    config=_CONFIG,
    weights=_WEIGHTS,
)
