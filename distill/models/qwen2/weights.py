"""Where Qwen2's weights are in Hugging Face and in GGUF files."""

from distill.models.weight_map import (
    COMMON_LAYER_WEIGHTS,
    QUERY_KEY_VALUE_BIASES,
    WeightMap,
    same_in_all,
)

QWEN2_WEIGHTS = WeightMap(layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS, *QUERY_KEY_VALUE_BIASES))
