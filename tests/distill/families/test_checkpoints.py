"""The config.json of real checkpoints, written down by hand: what is read of them."""

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

SHARED: dict[str, Any] = {
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.42.3",
        "vocab_size": 49152,
    },
    "meta-llama/Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0.dev0",
        "vocab_size": 128256,
    },
    "Qwen/Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "transformers_version": "4.40.1",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen/Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "4.51.0",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "mistralai/Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.42.0.dev0",
        "vocab_size": 32768,
    },
    "HuggingFaceTB/SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": 128012,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "mlp_bias": False,
        "model_type": "smollm3",
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "pad_token_id": 128004,
        "pretraining_tp": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "transformers_version": "4.54.0.dev0",
        "use_sliding_window": False,
        "vocab_size": 128256,
    },
    "google/gemma-3-270m": {
        "_sliding_window_pattern": 6,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "transformers_version": "4.55.0.dev0",
        "use_bidirectional_attention": False,
        "vocab_size": 262144,
    },
    "google/gemma-3-4b-it": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
    "Qwen/Qwen3.5-35B-A3B": {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": 248056,
        "model_type": "qwen3_5_moe",
        "text_config": {
            **SHARED,
            "attention_bias": False,
            "attn_output_gate": True,
            "bos_token_id": 248044,
            "eos_token_id": 248044,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_value_head_dim": 128,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262144,
            "model_type": "qwen3_5_moe_text",
            "moe_intermediate_size": 512,
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 16,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "output_router_logits": False,
            "partial_rotary_factor": 0.25,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "rope_theta": 10000000,
            },
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": 512,
            "tie_word_embeddings": False,
            "vocab_size": 248320,
        },
        "tie_word_embeddings": False,
        "video_token_id": 248057,
        "vision_config": {"depth": 27, "hidden_size": 1152},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    },
    "Qwen/Qwen3.5-0.8B": {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "image_token_id": 248056,
        "language_model_only": False,
        "model_type": "qwen3_5",
        "text_config": {
            **SHARED,
            "attention_bias": False,
            "attn_output_gate": True,
            "bos_token_id": 248044,
            "eos_token_id": 248044,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 16,
            "linear_value_head_dim": 128,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262144,
            "mlp_only_layers": [],
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 8,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "output_gate_type": "swish",
            "pad_token_id": None,
            "partial_rotary_factor": 0.25,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "tie_word_embeddings": True,
            "vocab_size": 248320,
        },
        "tie_word_embeddings": True,
        "video_token_id": 248057,
        "vision_config": {"depth": 12, "hidden_size": 768, "model_type": "qwen3_5"},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    },
}


def raw(name: str) -> dict[str, Any]:
    nested = {} if "text_config" in CHECKPOINTS[name] else SHARED
    return {**nested, **CHECKPOINTS[name]}


def read(name: str) -> ModelConfig:
    return parse_hf_config(json.loads(json.dumps(raw(name))))


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
        parse_hf_config(raw("Qwen/Qwen3.5-0.8B")["text_config"] | change)


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
    text = dict(raw("Qwen/Qwen3.5-0.8B")["text_config"])
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
    without = {k: v for k, v in raw("mistralai/Mistral-7B-v0.3").items() if k != "sliding_window"}
    assert parse_hf_config(without).layer_attention == (LayerAttention(window=4096),) * 32


def test_rope_of_transformers_5_is_read_by_type_of_layer() -> None:
    old = raw("google/gemma-3-270m")
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
        parse_hf_config(raw(name) | change)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_that_asks_for_nothing_is_accepted(family: str) -> None:
    texts = [checkpoint.get("text_config", checkpoint) for checkpoint in CHECKPOINTS.values()]
    text = next(text for text in texts if text["model_type"] == family)
    neutral = FAMILIES[family].config.neutral
    expected = parse_hf_config(text)
    for option, values in neutral.items():
        for value in (None, *values):
            assert parse_hf_config(text | {option: value}) == expected
