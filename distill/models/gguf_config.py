"""`ModelConfig` from the metadata of a GGUF file. Knows no JAX."""

import dataclasses

import numpy as np

from distill.errors import ModelError
from distill.families.registry import family_of_gguf
from distill.formats.family import GgufFormat
from distill.formats.gguf_file import GgufFile
from distill.network.config import LinearRopeScaling, Llama3RopeScaling, ModelConfig
from distill.network.frequencies import inverse_frequencies

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor in which llama.cpp keeps Llama 3's scaling, as one divisor per frequency."""


def parse_gguf_config(file: GgufFile) -> ModelConfig:
    """Read the model's description; `general.architecture` names the family.

    Raises:
        ModelError: what is missing or not supported, by name.
    """
    family = family_of_gguf(file.architecture)
    assert family.gguf is not None
    _refuse_unsupported(file, family.gguf)
    head_count = _one_for_all_layers(file, "attention.head_count")
    hidden_size = int(file.require_hyperparameter("embedding_length"))
    head_dim = int(file.hyperparameter("attention.key_length") or hidden_size // head_count)
    for name in ("rope.dimension_count", "attention.value_length"):
        width = file.hyperparameter(name)
        if width is not None and width != head_dim:
            raise ModelError(
                f"GGUF {name} {width} is not supported; supported: the head size {head_dim}"
            )
    config = ModelConfig(
        family=family.name,
        **family.config.traits,
        **family.gguf.read(file),
        # The metadata may lack the vocabulary size, but every file has the embedding.
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=hidden_size,
        intermediate_size=_one_for_all_layers(file, "feed_forward_length"),
        layer_count=int(file.require_hyperparameter("block_count")),
        head_count=head_count,
        key_value_head_count=_one_for_all_layers(file, "attention.head_count_kv"),
        head_dim=head_dim,
        norm_epsilon=_shortest(file.require_hyperparameter("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(file.hyperparameter("rope.freq_base") or 10000.0),
        rope_scaling=_linear_scaling(file),
        tied_head="output.weight" not in file.tensor_names,
        max_position_count=int(file.require_hyperparameter("context_length")),
    )
    if ROPE_FACTORS not in file.tensor_names:
        return config
    return dataclasses.replace(config, rope_scaling=_recover_llama3_scaling(file, config))


_FEATURES = (
    "expert_count",
    "attention.sliding_window",
    "attention.scale",
    "logit_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Hyperparameters that change what is computed. They are refused where the family's GgufFormat does
not understand them."""


def _linear_scaling(file: GgufFile) -> LinearRopeScaling | None:
    if file.hyperparameter("rope.scaling.type") != "linear":
        return None
    return LinearRopeScaling(factor=_shortest(file.require_hyperparameter("rope.scaling.factor")))


def _refuse_unsupported(file: GgufFile, form: GgufFormat) -> None:
    rope_type = file.hyperparameter("rope.scaling.type")
    if rope_type not in (None, "none", "linear"):
        raise ModelError(
            f"GGUF rope.scaling.type {rope_type!r} is not supported; supported: none, linear"
        )
    for feature in _FEATURES:
        value = file.hyperparameter(feature)
        if value and feature not in form.understood:
            raise ModelError(f"GGUF {feature} {value!r} is not supported")
    if file.hyperparameter("attention.causal") is False:
        raise ModelError("GGUF attention.causal False is not supported; supported: True")


def _one_for_all_layers(file: GgufFile, name: str) -> int:
    """A count that GGUF allows to differ between layers."""
    value = file.require_hyperparameter(name)
    counts = set(value) if isinstance(value, list) else {value}
    if len(counts) != 1:
        raise ModelError(f"GGUF {name} differs between layers, which is not supported")
    return int(counts.pop())


def _shortest(value: float) -> float:
    # GGUF holds float32: the 1e-05 in the model's own file has become 9.999999747e-06.
    return float(str(np.float32(value)))


def _recover_llama3_scaling(file: GgufFile, config: ModelConfig) -> Llama3RopeScaling:
    """The parameters from which llama.cpp's converter computed the divisors.

    Llama 3.1 to 3.3 have three of them in common, and the factor is the largest divisor. What they
    give is compared with the divisors, for another model may have other parameters.
    """
    divisors = file.tensor(ROPE_FACTORS).ravel()
    scaling = Llama3RopeScaling(
        factor=_shortest(divisors.max()),
        low_frequency_factor=1.0,
        high_frequency_factor=4.0,
        original_position_count=8192,
    )
    scaled = inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    expected = inverse_frequencies(config) / scaled
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise ModelError(f"GGUF {ROPE_FACTORS}: only the rope scaling of Llama 3 is supported")
    return scaling
