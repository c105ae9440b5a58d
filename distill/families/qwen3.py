"""Qwen3, the dense models: each head's queries and keys are normed before they turn.

https://arxiv.org/abs/2505.09388. Its `head_dim` is explicit and not `hidden_size / heads`.
"""

from distill.formats.attention_windows import read_optional_windows, write_optional_windows
from distill.formats.family import About, Family, GgufFormat
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import (
    COMMON_LAYER_WEIGHTS,
    QUERY_KEY_NORMS,
    WeightMap,
    same_in_all,
)

QWEN3 = Family(
    about=About(
        title="Qwen3 (dense)",
        checkpoints=("Qwen/Qwen3-0.6B",),
        features=("norms of queries and keys", "windows in the later layers"),
    ),
    config=ConfigFormat(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        defaults={"head_dim": 128, "num_key_value_heads": 32},
        traits={"query_key_norm": True},
        read=read_optional_windows,
        write=write_optional_windows,
    ),
    weights=WeightMap(layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS, *QUERY_KEY_NORMS)),
    gguf=GgufFormat(architecture="qwen3"),
)
