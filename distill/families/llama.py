"""Llama and SmolLM2: the decoder as it is, with full attention in every layer.

https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783. Biases and windows are refused.
"""

from distill.formats.attention_windows import full_attention_alone
from distill.formats.family import About, Family, GgufFormat
from distill.formats.hf_config import ConfigFormat
from distill.formats.weight_map import COMMON_LAYER_WEIGHTS, WeightMap, same_in_all

LLAMA = Family(
    about=About(
        title="Llama, SmolLM2",
        checkpoints=("HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.2-1B"),
        features=("rope scaling of Llama 3.1 to 3.3",),
    ),
    config=ConfigFormat(
        model_type="llama",
        architecture="LlamaForCausalLM",
        read=full_attention_alone,
    ),
    weights=WeightMap(
        layer_weights=same_in_all(*COMMON_LAYER_WEIGHTS),
        # llama.cpp turns neighbouring components of a head together, so its converter reorders
        # the rows of these projections. Conversion restores Transformers' order.
        gguf_rotary_permuted=("attn_q", "attn_k"),
    ),
    gguf=GgufFormat(architecture="llama"),
)
