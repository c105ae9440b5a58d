"""config.json: what is read, what is refused, and that nothing is silently ignored."""

import re
from typing import Any

import pytest

from distill.errors import ModelError
from distill.families.gemma3 import default_types, local_and_global
from distill.families.registry import hf_config, parse_hf_config
from distill.network.config import Llama3RopeScaling
from tests.support.tiny_models import LLAMA3_ROPE, tiny_config

LLAMA = hf_config(tiny_config("llama"))
QWEN3 = hf_config(tiny_config("qwen3"))
GEMMA3 = hf_config(
    tiny_config(
        "gemma3_text",
        layer_attention=local_and_global(default_types(2), 7),
        local_rope_theta=1e4,
    )
)

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
        ({"hidden_size": "48"}, "hidden_size must be a whole number, got '48'"),
        ({"rope_theta": 0}, "rope_theta must be a number greater than 0, got 0"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a number greater"),
        ({"rms_norm_eps": None, "num_hidden_layers": 2.5}, "num_hidden_layers must be a whole"),
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


@pytest.mark.parametrize("family", ["llama", "qwen3_5_text"])
@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope_type": "default", "rope_theta": 5e5}, {"type": "linear", "factor": 4.0}),
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 1e4}),
    ],
)
def test_two_accounts_of_frequencies_must_not_contradict_each_other(
    family: str, new: dict[str, Any], old: dict[str, Any]
) -> None:
    raw = hf_config(tiny_config(family))
    with pytest.raises(ModelError, match="rope_parameters and rope_scaling must say the same"):
        parse_hf_config(raw | {"rope_parameters": new, "rope_scaling": old})


def test_two_accounts_of_frequencies_that_agree_are_one() -> None:
    new = LLAMA3_SCALING | {"rope_theta": 500000.0}
    one = parse_hf_config(LLAMA | {"rope_scaling": None, "rope_parameters": new})
    both = parse_hf_config(LLAMA | {"rope_scaling": LLAMA3_SCALING, "rope_parameters": new})
    assert one == both


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "at least 1, got 0"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern must be at least 1"),
        ("gemma3_text", {"sliding_window": "512"}, "sliding_window must be a whole number"),
        ("qwen3_5_text", {"linear_num_key_heads": "2"}, "linear_num_key_heads must be a whole"),
        ("qwen3_5_text", {"layer_types": None, "full_attention_interval": 0}, "at least 1, got 0"),
        ("qwen3_moe", {"num_experts_per_tok": 1.5}, "num_experts_per_tok must be a whole number"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers must"),
    ],
)
def test_values_of_no_use_are_refused_by_name(
    family: str, change: dict[str, Any], named: str
) -> None:
    raw = GEMMA3 if family == "gemma3_text" else hf_config(tiny_config(family))
    with pytest.raises(ModelError, match=named):
        parse_hf_config(raw | change)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_a_window_without_a_size_has_that_of_transformers(family: str) -> None:
    raw = {
        name: value
        for name, value in hf_config(tiny_config(family)).items()
        if name not in ("sliding_window", "layer_types")
    } | {"use_sliding_window": True, "max_window_layers": 1}
    windows = [layer.window for layer in parse_hf_config(raw).layer_attention]
    assert windows == ([4096, 4096] if family == "qwen3_moe" else [None, 4096])
    assert parse_hf_config(raw | {"sliding_window": None}).layer_attention == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layer_types": None, "_sliding_window_pattern": 3}, "_sliding_window_pattern 3"),
        ({"sliding_window": None}, "sliding_window None"),
        (
            {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 2}}},
            "rope_parameters.sliding_attention.rope_type 'linear'",
        ),
    ],
)
def test_what_gemma3_would_compute_otherwise_is_refused(change: dict[str, Any], named: str) -> None:
    parse_hf_config(GEMMA3)
    with pytest.raises(ModelError, match=re.escape(named)):
        parse_hf_config(GEMMA3 | change)


@pytest.mark.parametrize("head_dim", range(2, 130, 2))
def test_a_part_of_a_head_that_turns_is_read_back_as_it_was_written(head_dim: int) -> None:
    for width in range(2, head_dim + 1, 2):
        config = tiny_config(
            "qwen3_5_text",
            head_dim=head_dim,
            rotary_width=None if width == head_dim else width,
        )
        assert parse_hf_config(hf_config(config)) == config
