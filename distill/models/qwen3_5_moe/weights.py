"""Where Qwen3.5 MoE's weights are in Hugging Face files. GGUF files of it are not read."""

from distill.models.config import ModelConfig
from distill.models.expert_weights import sparse_mlp_weights
from distill.models.layer_kinds import LayerKind
from distill.models.qwen3_5.weights import SKIPPED_PREFIXES, TEXT_PREFIXES, mixer_weights
from distill.models.weight_map import MLP_NORM, LayerWeight, WeightMap


def _layer_weights(config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    return (*mixer_weights(kind), MLP_NORM, *sparse_mlp_weights(config))


QWEN3_5_MOE_WEIGHTS = WeightMap(
    layer_weights=_layer_weights,
    text_prefixes=TEXT_PREFIXES,
    skipped_prefixes=SKIPPED_PREFIXES,
)
