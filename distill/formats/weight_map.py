"""Which tensor of a file is which parameter. Knows no JAX."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from distill.network.config import ModelConfig
from distill.network.layer_kinds import LayerKind


@dataclass(frozen=True, kw_only=True)
class LayerWeight:
    """One weight of the layers of a kind."""

    path: tuple[str, ...]
    """Keys below the layers' stack in the parameter tree; kernels end in "kernel"."""

    hf_name: str
    """Name in Transformers, between `model.layers.{i}.` and the suffix."""

    gguf_name: str
    """Name in GGUF, between `blk.{i}.` and the suffix."""

    suffix: str = ".weight"
    """Ends both names."""

    index: tuple[int, ...] = ()
    """Index on the axes of the parameter that follow the layers', such as that of experts."""


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """All weights of a family."""

    layer_weights: Callable[[ModelConfig, LayerKind], tuple[LayerWeight, ...]]
    """Those of the layers of a kind."""

    gguf_rotary_permuted: tuple[str, ...] = ()
    """GGUF names whose rows llama.cpp's converter reorders for its own rotary layout."""

    gguf_norm_offset: float = 0.0
    """What llama.cpp's converter adds to the scales of norms."""

    text_prefixes: Mapping[str, str] = field(default_factory=dict)
    """In files that hold more than the text model: how its names begin there, and how they begin in
    a file of it alone."""

    skipped_prefixes: tuple[str, ...] = ()
    """In such files: how the names of all that is not the text model begin."""


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
    """The layer of the model that has it; None: it belongs to no layer."""

    index: tuple[int, ...] = ()
    """Index on the leading axes of the stacked parameter: of the layer among those of its kind, and
    then of the expert."""

    @property
    def is_transposed(self) -> bool:
        """Whether the file has [out, in] where the parameter is [in, out]."""
        return self.path[-1] == "kernel"


def projection(name: str, module: str, hf_module: str, gguf_name: str) -> LayerWeight:
    """The kernel of a projection."""
    return LayerWeight(
        path=(module, name, "kernel"), hf_name=f"{hf_module}.{name}", gguf_name=gguf_name
    )


def norm(path: tuple[str, ...], hf_name: str, gguf_name: str) -> LayerWeight:
    """The scale of a norm."""
    return LayerWeight(path=(*path, "scale"), hf_name=hf_name, gguf_name=gguf_name)


INPUT_NORM = norm(("input_norm",), "input_layernorm", "attn_norm")

ATTENTION_WEIGHTS = (
    projection("q_proj", "attention", "self_attn", "attn_q"),
    projection("k_proj", "attention", "self_attn", "attn_k"),
    projection("v_proj", "attention", "self_attn", "attn_v"),
    projection("o_proj", "attention", "self_attn", "attn_output"),
)

QUERY_KEY_NORMS = (
    norm(("attention", "q_norm"), "self_attn.q_norm", "attn_q_norm"),
    norm(("attention", "k_norm"), "self_attn.k_norm", "attn_k_norm"),
)

QUERY_KEY_VALUE_BIASES = tuple(
    LayerWeight(
        path=("attention", name, "bias"),
        hf_name=f"self_attn.{name}",
        gguf_name=gguf_name,
        suffix=".bias",
    )
    for name, gguf_name in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"))
)

MLP_NORM = norm(("post_attention_norm",), "post_attention_layernorm", "ffn_norm")

DENSE_MLP_WEIGHTS = (
    projection("gate_proj", "mlp", "mlp", "ffn_gate"),
    projection("up_proj", "mlp", "mlp", "ffn_up"),
    projection("down_proj", "mlp", "mlp", "ffn_down"),
)

COMMON_LAYER_WEIGHTS = (INPUT_NORM, *ATTENTION_WEIGHTS, MLP_NORM, *DENSE_MLP_WEIGHTS)
"""What the layers of most families have."""


def same_in_all(
    *weights: LayerWeight,
) -> Callable[[ModelConfig, LayerKind], tuple[LayerWeight, ...]]:
    """`WeightMap.layer_weights` of a family whose layers all have the same weights."""
    return lambda _config, _kind: weights


def weight_entries(weight_map: WeightMap, config: ModelConfig) -> Iterator[WeightEntry]:
    """All tensors of a model, in the order of the forward pass."""
    yield WeightEntry(
        hf_name="model.embed_tokens.weight",
        gguf_name="token_embd.weight",
        path=("embed_tokens", "embedding"),
        layer=None,
    )
    weights = {kind: weight_map.layer_weights(config, kind) for kind in config.kinds}
    seen = dict.fromkeys(config.kinds, 0)
    for layer in range(config.layer_count):
        kind = config.kind_of(layer)
        root = ("layers", kind.name) if len(config.kinds) > 1 else ("layers",)
        for weight in weights[kind]:
            yield WeightEntry(
                hf_name=f"model.layers.{layer}.{weight.hf_name}{weight.suffix}",
                gguf_name=f"blk.{layer}.{weight.gguf_name}{weight.suffix}",
                path=(*root, *weight.path),
                layer=layer,
                index=(seen[kind], *weight.index),
            )
        seen[kind] += 1
    yield WeightEntry(
        hf_name="model.norm.weight",
        gguf_name="output_norm.weight",
        path=("norm", "scale"),
        layer=None,
    )
    if not config.tied_head:
        yield WeightEntry(
            hf_name="lm_head.weight",
            gguf_name="output.weight",
            path=("lm_head", "embedding"),
            layer=None,
        )
