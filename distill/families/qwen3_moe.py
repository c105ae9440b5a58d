"""Qwen3's mixtures of experts, such as Qwen3-30B-A3B: the MLP is sparse in all layers or in some.

https://arxiv.org/abs/2505.09388. GGUF files of it are not read.
"""

from typing import Any

from distill.errors import ModelError
from distill.formats.attention_windows import optional_window
from distill.formats.config_reader import ConfigReader, whole_number
from distill.formats.expert_weights import sparse_mlp_weights
from distill.formats.family import About, Family
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import (
    ATTENTION_WEIGHTS,
    DENSE_MLP_WEIGHTS,
    INPUT_NORM,
    MLP_NORM,
    QUERY_KEY_NORMS,
    LayerWeight,
    WeightMap,
)
from distill.network.config import LayerAttention, ModelConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.layer_kinds import LayerKind, shortest_period

DENSE = LayerKind(name="dense")
SPARSE = LayerKind(name="sparse", mlp="sparse")


def _read_config(reader: ConfigReader) -> dict[str, Any]:
    layer_count = reader.integer("num_hidden_layers")
    expert_count = _expert_count(reader)
    step = reader.integer("decoder_sparse_step", 1, least=1)
    dense_layers = set(reader.get("mlp_only_layers") or ())
    kinds = [
        SPARSE if expert_count and layer not in dense_layers and (layer + 1) % step == 0 else DENSE
        for layer in range(layer_count)
    ]
    fields: dict[str, Any] = {"period": shortest_period(kinds)}
    # Read in any case: a key that nobody takes is refused.
    experts: dict[str, Any] = {
        "choice_count": reader.integer("num_experts_per_tok", 8),
        "expert_size": reader.integer("moe_intermediate_size", 768),
        "is_normalized": bool(reader.get("norm_topk_prob", False)),
    }
    if SPARSE in kinds:
        fields["experts"] = ExpertsConfig(expert_count=expert_count, **experts)
    # Unlike in the dense Qwen3, a window is that of all layers.
    window = optional_window(reader)
    if window is not None:
        fields["layer_attention"] = (LayerAttention(window=window),) * layer_count
    return fields


def _expert_count(reader: ConfigReader) -> int:
    # Checkpoints have num_experts; Transformers 5 reads either name and writes the other.
    named = {
        name: whole_number(name, value)
        for name in ("num_experts", "num_local_experts")
        if (value := reader.get(name)) is not None
    }
    counts = set(named.values()) or {128}
    if len(counts) > 1:
        raise ModelError(f"config.json: num_experts and num_local_experts differ: {named}")
    return counts.pop()


def _write_config(config: ModelConfig) -> dict[str, Any]:
    windows = {attention.window for attention in config.layer_attention}
    window = windows.pop() if windows else None
    experts = config.experts
    expert_keys: dict[str, Any] = {"num_experts": 0}
    if experts is not None:
        expert_keys = {
            "num_experts": experts.expert_count,
            "num_experts_per_tok": experts.choice_count,
            "moe_intermediate_size": experts.expert_size,
            "norm_topk_prob": experts.is_normalized,
        }
    return {
        **expert_keys,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [
            layer for layer in range(config.layer_count) if config.kind_of(layer) == DENSE
        ],
        "use_sliding_window": window is not None,
        "sliding_window": window,
    }


def _layer_weights(config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    mlp = sparse_mlp_weights(config) if kind.mlp == "sparse" else DENSE_MLP_WEIGHTS
    return (INPUT_NORM, *ATTENTION_WEIGHTS, *QUERY_KEY_NORMS, MLP_NORM, *mlp)


QWEN3_MOE = Family(
    about=About(
        title="Qwen3 (mixture of experts)",
        checkpoints=("Qwen/Qwen3-30B-A3B",),
        features=(
            "exact routing without a capacity",
            "dense and sparse layers",
            "adapters on attention alone",
        ),
    ),
    config=ConfigFormat(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        defaults={"num_key_value_heads": 4},
        traits={"query_key_norm": True},
        read=_read_config,
        write=_write_config,
        # The first two are of the loss that spreads tokens over experts in pre-training. The last
        # is the dense Qwen3's, from whose configuration these files were made.
        irrelevant=frozenset({"router_aux_loss_coef", "output_router_logits", "max_window_layers"}),
    ),
    weights=WeightMap(layer_weights=_layer_weights),
)
