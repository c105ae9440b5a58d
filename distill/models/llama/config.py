"""Llama's config.json. Biases, and rope types other than llama3, are refused."""

from distill.models.hf_config import HfFamily

LLAMA = HfFamily(
    family="llama",
    architecture="LlamaForCausalLM",
    default_head_dim=None,
    default_key_value_head_count=None,
)
