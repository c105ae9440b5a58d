"""What is read of the config.json of real checkpoints, which tests/fixtures/configs holds."""

import json
from typing import Any

import pytest

from distill.errors import ModelError
from distill.families.qwen3_moe import SPARSE
from distill.families.registry import FAMILIES, describe_families, hf_config, parse_hf_config
from distill.network.config import (
    LayerAttention,
    LinearRopeScaling,
    Llama3RopeScaling,
    ModelConfig,
)
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.experts_config import ExpertsConfig
from distill.network.projections import projection_shapes
from tests.support.parity_cases import FIXTURES

CONFIGS = FIXTURES / "configs"

CHECKPOINTS: dict[str, dict[str, Any]] = {
    str(path.relative_to(CONFIGS).with_suffix("")): json.loads(path.read_text())
    for path in sorted(CONFIGS.glob("*/*.json"))
}
"""Hub id → what the checkpoint's config.json says."""


def read(name: str) -> ModelConfig:
    return parse_hf_config(CHECKPOINTS[name])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_config_is_read_and_written_back(name: str) -> None:
    config = read(name)
    assert parse_hf_config(json.loads(json.dumps(hf_config(config)))) == config


def test_listed_checkpoints_are_those_whose_config_is_tested() -> None:
    listed = [name for family in describe_families() for name in family.checkpoints]
    assert sorted(listed) == sorted(CHECKPOINTS)


def test_special_fields_are_read() -> None:
    llama = read("meta-llama/Llama-3.2-1B")
    assert isinstance(llama.rope_scaling, Llama3RopeScaling)
    assert (llama.rope_scaling.factor, llama.head_dim) == (32.0, 64)
    qwen2 = read("Qwen/Qwen2.5-0.5B")
    assert qwen2.query_key_value_bias
    assert (qwen2.layer_attention, qwen2.head_dim) == ((), 64)
    assert read("Qwen/Qwen3-0.6B").query_key_norm
    sparse = read("Qwen/Qwen3-30B-A3B")
    assert sparse.period == (SPARSE,)
    assert sparse.experts == ExpertsConfig(
        expert_count=128, choice_count=8, expert_size=768, is_normalized=True
    )
    assert read("mistralai/Mistral-7B-v0.3").layer_attention == ()
    smollm3 = read("HuggingFaceTB/SmolLM3-3B")
    assert smollm3.tied_head
    assert smollm3.layer_attention[2:4] == (LayerAttention(), LayerAttention(rotary="none"))
    gemma = read("google/gemma-3-270m")
    local = LayerAttention(window=512, rotary="local")
    assert gemma.layer_attention == (*[local] * 5, LayerAttention()) * 3
    assert (gemma.rope_theta, gemma.local_rope_theta) == (1e6, 1e4)
    assert (gemma.query_scalar, gemma.activation, gemma.tied_head) == (256.0, "gelu_tanh", True)


def test_text_part_is_read_with_the_defaults_of_what_it_leaves_out() -> None:
    config = read("google/gemma-3-4b-it")
    assert config.family == "gemma3_text"
    assert (config.head_count, config.key_value_head_count, config.head_dim) == (8, 4, 256)
    assert config.rope_scaling == LinearRopeScaling(factor=8.0)
    assert config.layer_attention[33] == LayerAttention(window=1024, rotary="local")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer_types": ["sliding_attention"] * 24},
            "supported: linear_attention, full_attention",
        ),
        ({"layer_types": ["full_attention"]}, "must be 24, as num_hidden_layers, got 1"),
        ({"attn_output_gate": False}, "attn_output_gate False is not supported"),
        ({"mamba_ssm_dtype": "bfloat16"}, "mamba_ssm_dtype 'bfloat16' is not supported"),
        ({"linear_num_value_heads": 17}, "must be a multiple of the 16 key heads, got 17"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters.factor 2.0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
    ],
)
def test_what_qwen3_5_does_not_support_is_refused_by_name(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        parse_hf_config(CHECKPOINTS["Qwen/Qwen3.5-0.8B"]["text_config"] | change)


def test_hybrid_stack_of_qwen3_5_is_read() -> None:
    config = read("Qwen/Qwen3.5-0.8B")
    assert [kind.mixer for kind in config.period] == ["delta_net"] * 3 + ["attention"]
    assert config.delta_net == DeltaNetConfig(
        key_head_count=16, value_head_count=16, key_width=128, value_width=128, tap_count=4
    )
    assert (config.rotary_width, config.rope_theta, config.tied_head) == (64, 1e7, True)
    assert projection_shapes(config)["q_proj"] == (1024, 4096)
    assert projection_shapes(config)["in_proj_qkv"] == (1024, 6144)


def test_experts_of_qwen3_5_are_read() -> None:
    config = read("Qwen/Qwen3.5-35B-A3B")
    assert {kind.mlp for kind in config.period} == {"sparse"}
    assert config.experts == ExpertsConfig(
        expert_count=256,
        choice_count=8,
        expert_size=512,
        is_normalized=True,
        shared_expert_size=512,
    )


def test_absent_layer_types_of_qwen3_5_are_those_of_its_interval() -> None:
    text = dict(CHECKPOINTS["Qwen/Qwen3.5-0.8B"]["text_config"])
    expected = parse_hf_config(text)
    # As older files say what they do not scale.
    text["rope_scaling"] = None
    del text["layer_types"]
    assert parse_hf_config(text) == expected
    text["full_attention_interval"] = 3
    assert [kind.mixer for kind in parse_hf_config(text).period] == (
        ["delta_net", "delta_net", "attention"]
    )


def test_absent_window_of_mistral_is_4096_tokens() -> None:
    without = dict(CHECKPOINTS["mistralai/Mistral-7B-v0.3"])
    del without["sliding_window"]
    assert parse_hf_config(without).layer_attention == (LayerAttention(window=4096),) * 32


def test_rope_of_transformers_5_is_read_by_type_of_layer() -> None:
    old = CHECKPOINTS["google/gemma-3-270m"]
    keys = ("rope_theta", "rope_local_base_freq", "rope_scaling")
    new = {key: value for key, value in old.items() if key not in keys} | {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        }
    }
    assert parse_hf_config(new) == parse_hf_config(old)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("google/gemma-3-270m", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("google/gemma-3-270m", {"use_bidirectional_attention": True}, "True is not supported"),
        ("google/gemma-3-270m", {"hidden_activation": "gelu"}, "supported: gelu_pytorch_tanh"),
        ("google/gemma-3-270m", {"layer_types": ["full_attention"]}, "must be 18, as num_hidden"),
        (
            "google/gemma-3-4b-it",
            {"audio_config": {}},
            "audio_config {} is not known",
        ),
        ("Qwen/Qwen3.5-0.8B", {"audio_config": {}}, "audio_config {} is not known to the family"),
        ("Qwen/Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope True is not supported"),
        ("HuggingFaceTB/SmolLM3-3B", {"no_rope_layers": [1]}, "no_rope_layers must be at least 36"),
        ("HuggingFaceTB/SmolLM3-3B", {"mlp_bias": True}, "mlp_bias True is not supported"),
        ("Qwen/Qwen3-0.6B", {"rope_scaling": {"rope_type": "yarn"}}, "default, linear, llama3"),
        ("Qwen/Qwen3-0.6B", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("Qwen/Qwen3-0.6B", {"model_type": "mamba"}, "supported: llama, qwen2, qwen3, mistral"),
        ("Qwen/Qwen3-0.6B", {"depth_scale": 0.5}, "depth_scale 0.5 is not known"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        parse_hf_config(CHECKPOINTS[name] | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_that_asks_for_nothing_is_accepted(family: str) -> None:
    texts = [checkpoint.get("text_config", checkpoint) for checkpoint in CHECKPOINTS.values()]
    text = next(text for text in texts if text["model_type"] == family)
    neutral = FAMILIES[family].config.neutral
    expected = parse_hf_config(text)
    for option, values in neutral.items():
        for value in (None, *values):
            assert parse_hf_config(text | {option: value}) == expected
