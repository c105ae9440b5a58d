"""Where SmolLM3's weights are in Hugging Face and in GGUF files."""

from distill.models.weight_map import COMMON_LAYER_WEIGHTS, WeightMap, same_in_all

SMOLLM3_WEIGHTS = WeightMap(
    layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS),
    gguf_rotary_permuted=("attn_q", "attn_k"),
)
