"""config.json: what is read, what is refused, and that nothing is silently ignored."""

import re
from typing import Any

import pytest

from distill.errors import ModelError
from distill.models.config import Llama3RopeScaling
from distill.models.hf_families import hf_config, parse_hf_config
from tests.support.tiny_models import LLAMA3_ROPE, tiny_config

LLAMA = hf_config(tiny_config("llama"))
QWEN3 = hf_config(tiny_config("qwen3"))

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("overrides", [{}, {"rope_scaling": LLAMA3_ROPE}, {"tied_head": False}])
def test_written_config_is_read_back(family: str, overrides: dict[str, Any]) -> None:
    config = tiny_config(family, **overrides)
    assert parse_hf_config(hf_config(config)) == config


def test_rope_of_transformers_5_is_read() -> None:
    raw = LLAMA | {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": LLAMA3_SCALING | {"rope_theta": 500000.0},
    }
    config = parse_hf_config(raw)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == Llama3RopeScaling(
        factor=32.0,
        low_frequency_factor=1.0,
        high_frequency_factor=4.0,
        original_position_count=8192,
    )


def test_absent_fields_have_transformers_defaults() -> None:
    raw = {key: value for key, value in LLAMA.items() if key not in ("head_dim", "rope_theta")}
    raw |= {"num_key_value_heads": None, "architectures": None}
    config = parse_hf_config(raw)
    assert (config.head_dim, config.key_value_head_count, config.rope_theta) == (8, 6, 10000.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma"}, "'gemma' is not supported; supported: llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type is missing"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config 'gptq'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"sliding_window": 4096}, "sliding_window 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": LLAMA3_SCALING | {"beta_fast": 32}}, "beta_fast 32"),
        ({"clip_qkv": None}, "clip_qkv None is not known to the family llama; known: add_cross"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rope_scaling": LLAMA3_SCALING | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 4}, "must divide the 6 query heads, got 4"),
        ({"head_dim": 7}, "must be even for rotary positions, got 7"),
        ({"num_attention_heads": 0}, "head_count: must be at least 1, got 0"),
        ({"vocab_size": -1}, "vocab_size: must be at least 1, got -1"),
    ],
)
def test_unsupported_model_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=re.escape(named)):
        parse_hf_config(LLAMA | change)


def test_sliding_window_that_is_switched_off_is_no_obstacle() -> None:
    raw = QWEN3 | {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1}
    assert parse_hf_config(raw) == parse_hf_config(QWEN3)
    windows = parse_hf_config(raw | {"use_sliding_window": True}).layer_attention
    assert [layer.window for layer in windows] == [None, 4096]
