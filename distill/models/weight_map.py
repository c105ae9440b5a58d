"""Which tensor of a file is which parameter. Knows no JAX."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LayerWeight:
    """One weight that every layer has."""

    path: tuple[str, ...]
    """Keys below "layers" in the parameter tree; kernels end in "kernel"."""

    hf_name: str
    """Name in Transformers, between `model.layers.{i}.` and `.weight`."""

    gguf_name: str
    """Name in GGUF, between `blk.{i}.` and `.weight`."""


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """All weights of a family."""

    layer_weights: tuple[LayerWeight, ...]
    """Those of a layer."""

    gguf_rotary_permuted: tuple[str, ...]
    """GGUF names whose rows llama.cpp's converter reorders for its own rotary layout."""


@dataclass(frozen=True, kw_only=True)
class WeightEntry:
    """One tensor of a Hugging Face directory and its place in the parameter tree."""

    hf_name: str
    """Full name, "model.layers.3.self_attn.q_proj.weight"."""

    gguf_name: str
    """Full name, "blk.3.attn_q.weight"."""

    path: tuple[str, ...]
    """Keys from the root of the parameter tree."""

    layer: int | None
    """Index on the leading axis of the stacked parameter; None: not of a layer."""

    @property
    def is_transposed(self) -> bool:
        """Whether the file has [out, in] where the parameter is [in, out]."""
        return self.path[-1] == "kernel"


def _projection(name: str, module: str, hf_module: str, gguf_name: str) -> LayerWeight:
    return LayerWeight(
        path=(module, name, "kernel"), hf_name=f"{hf_module}.{name}", gguf_name=gguf_name
    )


COMMON_LAYER_WEIGHTS = (
    LayerWeight(path=("input_norm", "scale"), hf_name="input_layernorm", gguf_name="attn_norm"),
    _projection("q_proj", "attention", "self_attn", "attn_q"),
    _projection("k_proj", "attention", "self_attn", "attn_k"),
    _projection("v_proj", "attention", "self_attn", "attn_v"),
    _projection("o_proj", "attention", "self_attn", "attn_output"),
    LayerWeight(
        path=("post_attention_norm", "scale"),
        hf_name="post_attention_layernorm",
        gguf_name="ffn_norm",
    ),
    _projection("gate_proj", "mlp", "mlp", "ffn_gate"),
    _projection("up_proj", "mlp", "mlp", "ffn_up"),
    _projection("down_proj", "mlp", "mlp", "ffn_down"),
)
"""What the layers of every family have."""


def weight_entries(
    weight_map: WeightMap, *, layer_count: int, tied_head: bool
) -> Iterator[WeightEntry]:
    """All tensors of a model, in the order of the forward pass."""
    yield WeightEntry(
        hf_name="model.embed_tokens.weight",
        gguf_name="token_embd.weight",
        path=("embed_tokens", "embedding"),
        layer=None,
    )
    for layer in range(layer_count):
        for weight in weight_map.layer_weights:
            yield WeightEntry(
                hf_name=f"model.layers.{layer}.{weight.hf_name}.weight",
                gguf_name=f"blk.{layer}.{weight.gguf_name}.weight",
                path=("layers", *weight.path),
                layer=layer,
            )
    yield WeightEntry(
        hf_name="model.norm.weight",
        gguf_name="output_norm.weight",
        path=("norm", "scale"),
        layer=None,
    )
    if not tied_head:
        yield WeightEntry(
            hf_name="lm_head.weight",
            gguf_name="output.weight",
            path=("lm_head", "embedding"),
            layer=None,
        )
