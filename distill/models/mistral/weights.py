"""Where Mistral's weights are in Hugging Face. llama.cpp's files call themselves llama."""

from distill.models.weight_map import COMMON_LAYER_WEIGHTS, WeightMap, same_in_all

MISTRAL_WEIGHTS = WeightMap(layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS))
