"""Where Qwen3's weights are in Hugging Face and in GGUF files."""

from distill.models.weight_map import COMMON_LAYER_WEIGHTS, LayerWeight, WeightMap

QWEN3_WEIGHTS = WeightMap(
    layer_weights=(
        *COMMON_LAYER_WEIGHTS,
        LayerWeight(
            path=("attention", "q_norm", "scale"),
            hf_name="self_attn.q_norm",
            gguf_name="attn_q_norm",
        ),
        LayerWeight(
            path=("attention", "k_norm", "scale"),
            hf_name="self_attn.k_norm",
            gguf_name="attn_k_norm",
        ),
    ),
    gguf_rotary_permuted=(),
)
