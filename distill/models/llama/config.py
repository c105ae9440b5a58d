"""Llama's config.json. Biases, and windows, are refused."""

from distill.models.attention_windows import full_attention_alone
from distill.models.hf_config import About, HfFamily

LLAMA = HfFamily(
    family="llama",
    architecture="LlamaForCausalLM",
    about=About(
        title="Llama, SmolLM2",
        checkpoints=(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "meta-llama/Llama-3.2-1B",
        ),
        features=("rope scaling of Llama 3.1 to 3.3",),
    ),
    read=full_attention_alone,
)
"""Llama (https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783) and SmolLM2."""
