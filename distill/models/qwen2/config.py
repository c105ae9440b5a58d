"""Qwen2's config.json, which Qwen2.5 shares. The biases of its projections are in no key."""

from distill.models.attention_windows import read_optional_windows, write_optional_windows
from distill.models.hf_config import About, HfFamily

QWEN2 = HfFamily(
    family="qwen2",
    architecture="Qwen2ForCausalLM",
    about=About(
        title="Qwen2, Qwen2.5",
        checkpoints=("Qwen/Qwen2.5-0.5B",),
        features=(
            "biases of queries, keys and values",
            "windows in the later layers",
        ),
    ),
    defaults={"num_key_value_heads": 32},
    traits={"query_key_value_bias": True},
    read=read_optional_windows,
    write=write_optional_windows,
    neutral={"use_mrope": (False,)},
)
