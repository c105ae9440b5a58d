"""Qwen3.5 MoE's config.json: that of the dense models, and how tokens choose their experts."""

from typing import Any

from distill.models.config import ModelConfig
from distill.models.config_reader import ConfigReader
from distill.models.experts_config import ExpertsConfig
from distill.models.hf_config import About, HfFamily, HfWrapper
from distill.models.qwen3_5.config import (
    DEFAULTS,
    FEATURES,
    MTP_KEYS,
    NEUTRAL,
    TRAITS,
    VISION_KEYS,
    read_layers,
    read_partial_rope,
    write_layers,
    write_partial_rope,
)

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


QWEN3_5_MOE = HfFamily(
    family="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    about=About(
        title="Qwen3.5 MoE (text)",
        checkpoints=("Qwen/Qwen3.5-35B-A3B",),
        features=(*FEATURES, "mixtures of experts, with one that all tokens visit"),
    ),
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
"""Qwen3.5's mixtures of experts, alone or with their vision towers."""
