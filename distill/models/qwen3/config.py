"""Qwen3's config.json. Its `head_dim` is explicit and not `hidden_size / heads`."""

from distill.models.attention_windows import read_optional_windows, write_optional_windows
from distill.models.hf_config import About, HfFamily

QWEN3 = HfFamily(
    family="qwen3",
    architecture="Qwen3ForCausalLM",
    about=About(
        title="Qwen3 (dense)",
        checkpoints=("Qwen/Qwen3-0.6B",),
        features=(
            "norms of queries and keys",
            "windows in the later layers",
        ),
    ),
    defaults={"head_dim": 128, "num_key_value_heads": 32},
    traits={"query_key_norm": True},
    read=read_optional_windows,
    write=write_optional_windows,
)
