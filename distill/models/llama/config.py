"""Llama's config.json. Biases, and rope types other than llama3, are refused."""

from distill.models.attention_windows import full_attention_alone
from distill.models.hf_config import HfFamily

LLAMA = HfFamily(family="llama", architecture="LlamaForCausalLM", read=full_attention_alone)
"""Llama (https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783) and SmolLM2."""
