"""Where Qwen3.5's weights are in Hugging Face files. GGUF files of it are not read.

Checkpoints hold the whole model: a vision tower, and layers that predict several tokens ahead
("mtp"), are beside the text model.
"""

from distill.models.config import ModelConfig
from distill.models.layer_kinds import LayerKind
from distill.models.weight_map import (
    ATTENTION_WEIGHTS,
    DENSE_MLP_WEIGHTS,
    INPUT_NORM,
    MLP_NORM,
    QUERY_KEY_NORMS,
    LayerWeight,
    WeightMap,
    projection,
)


def _of_mixer(name: str, path: tuple[str, ...], suffix: str = "") -> LayerWeight:
    return LayerWeight(
        path=("delta_net", *path),
        hf_name=f"linear_attn.{name}",
        gguf_name=f"linear_attn.{name}",
        suffix=suffix,
    )


DELTA_NET_WEIGHTS = (
    *(
        projection(name, "delta_net", "linear_attn", f"linear_attn.{name}")
        for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    ),
    # [C, 1, K] in the file.
    _of_mixer("conv1d", ("conv1d", "kernel"), ".weight"),
    _of_mixer("dt_bias", ("dt_bias",)),
    _of_mixer("A_log", ("a_log",)),
    _of_mixer("norm", ("norm", "scale"), ".weight"),
    projection("out_proj", "delta_net", "linear_attn", "linear_attn.out_proj"),
)


def mixer_weights(kind: LayerKind) -> tuple[LayerWeight, ...]:
    """What mixes tokens in the layers of a kind, with the norm before it."""
    mixer = (
        DELTA_NET_WEIGHTS if kind.mixer == "delta_net" else (*ATTENTION_WEIGHTS, *QUERY_KEY_NORMS)
    )
    return (INPUT_NORM, *mixer)


def _layer_weights(_config: ModelConfig, kind: LayerKind) -> tuple[LayerWeight, ...]:
    return (*mixer_weights(kind), MLP_NORM, *DENSE_MLP_WEIGHTS)


TEXT_PREFIXES = {"model.language_model.": "model."}
SKIPPED_PREFIXES = ("model.visual.", "mtp.")

QWEN3_5_WEIGHTS = WeightMap(
    layer_weights=_layer_weights,
    text_prefixes=TEXT_PREFIXES,
    skipped_prefixes=SKIPPED_PREFIXES,
)
