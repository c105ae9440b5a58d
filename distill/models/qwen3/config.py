"""Qwen3's config.json. Its `head_dim` is explicit and not `hidden_size / heads`."""

from distill.models.hf_config import HfFamily

QWEN3 = HfFamily(
    family="qwen3",
    architecture="Qwen3ForCausalLM",
    default_head_dim=128,
    default_key_value_head_count=32,
)
