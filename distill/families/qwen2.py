"""Qwen2 and Qwen2.5, the dense models: queries, keys and values have biases, which no key says.

https://arxiv.org/abs/2407.10671
"""

from distill.formats.attention_windows import read_optional_windows, write_optional_windows
from distill.formats.family import About, Family, GgufFormat
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import (
    COMMON_LAYER_WEIGHTS,
    QUERY_KEY_VALUE_BIASES,
    WeightMap,
    same_in_all,
)

QWEN2 = Family(
    about=About(
        title="Qwen2, Qwen2.5",
        checkpoints=("Qwen/Qwen2.5-0.5B",),
        features=("biases of queries, keys and values", "windows in the later layers"),
    ),
    config=ConfigFormat(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        defaults={"num_key_value_heads": 32},
        traits={"query_key_value_bias": True},
        read=read_optional_windows,
        write=write_optional_windows,
        neutral={"use_mrope": (False,)},
    ),
    weights=WeightMap(layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS, *QUERY_KEY_VALUE_BIASES)),
    gguf=GgufFormat(architecture="qwen2"),
)
