"""Where Qwen3 MoE's weights are in Hugging Face files. GGUF files of it are not read."""

from distill.models.config import ModelConfig
from distill.models.expert_weights import sparse_mlp_weights
from distill.models.layer_kinds import LayerKind
from distill.models.weight_map import (
    ATTENTION_WEIGHTS,
    DENSE_MLP_WEIGHTS,
    INPUT_NORM,
    MLP_NORM,
    QUERY_KEY_NORMS,
    LayerWeight,
    WeightMap,
)


def _layer_weights(config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    mlp = sparse_mlp_weights(config) if kind.mlp == "sparse" else DENSE_MLP_WEIGHTS
    return (INPUT_NORM, *ATTENTION_WEIGHTS, *QUERY_KEY_NORMS, MLP_NORM, *mlp)


QWEN3_MOE_WEIGHTS = WeightMap(layer_weights=_layer_weights)
