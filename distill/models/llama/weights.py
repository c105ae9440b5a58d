"""Where Llama's weights are in Hugging Face and in GGUF files."""

from distill.models.weight_map import COMMON_LAYER_WEIGHTS, WeightMap, same_in_all

# llama.cpp turns neighbouring components of a head together, so its converter reorders the rows
# of the query and key projections of this family; Transformers' order is restored.
LLAMA_WEIGHTS = WeightMap(
    layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS),
    gguf_rotary_permuted=("attn_q", "attn_k"),
)
