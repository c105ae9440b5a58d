"""Qwen3.5 whose MLPs are mixtures of experts, each beside an expert that all tokens visit.

Everything but the MLPs is that of `qwen3_5`. GGUF files of it are not read.
"""

from dataclasses import replace
from typing import Any

from distill.families.qwen3_5 import QWEN3_5, WRAPPER, mixer_weights, read_layers, write_layers
from distill.formats.config_reader import ConfigReader
from distill.formats.expert_weights import sparse_mlp_weights
from distill.formats.family import About, Family
from distill.formats.weight_map import MLP_NORM, LayerWeight
from distill.network.config import ModelConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.layer_kinds import LayerKind

_EXPERT_KEYS = {
    "expert_count": "num_experts",
    "choice_count": "num_experts_per_tok",
    "expert_size": "moe_intermediate_size",
    "shared_expert_size": "shared_expert_intermediate_size",
}
"""Of each field of ExpertsConfig that files say, the key."""


def _read_config(reader: ConfigReader) -> dict[str, Any]:
    sizes = {field: reader.integer(key) for field, key in _EXPERT_KEYS.items()}
    return {
        **read_layers(reader, mlp="sparse"),
        "experts": ExpertsConfig(is_normalized=True, **sizes),
    }


def _write_config(config: ModelConfig) -> dict[str, Any]:
    experts = {key: getattr(config.experts, field) for field, key in _EXPERT_KEYS.items()}
    return {**write_layers(config), **experts}


def _layer_weights(config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    return (*mixer_weights(kind), MLP_NORM, *sparse_mlp_weights(config))


QWEN3_5_MOE = Family(
    about=About(
        title="Qwen3.5 MoE (text)",
        checkpoints=("Qwen/Qwen3.5-35B-A3B",),
        features=(
            *QWEN3_5.about.features,
            "mixtures of experts, with one that all tokens visit",
        ),
    ),
    config=replace(
        QWEN3_5.config,
        model_type="qwen3_5_moe_text",
        architecture="Qwen3_5MoeForCausalLM",
        defaults={
            **QWEN3_5.config.defaults,
            "num_key_value_heads": 2,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            # No layer has a dense MLP, and the files do not say its width.
            "intermediate_size": 512,
        },
        read=_read_config,
        write=_write_config,
        # The loss that spreads tokens over experts belongs to pre-training.
        irrelevant=QWEN3_5.config.irrelevant | {"router_aux_loss_coef", "output_router_logits"},
        wrapper=replace(
            WRAPPER,
            model_type="qwen3_5_moe",
            architecture="Qwen3_5MoeForConditionalGeneration",
        ),
    ),
    weights=replace(QWEN3_5.weights, layer_weights=_layer_weights),
)
