"""Windows of attention in config.json, as most families have them. Knows no JAX."""

from collections.abc import Sequence
from typing import Any

from distill.errors import ModelError
from distill.formats.config_reader import ConfigReader
from distill.network.config import LayerAttention, ModelConfig, refuse

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(reader: ConfigReader, layer_count: int, default: Sequence[str]) -> Sequence[str]:
    """The `layer_types` of a model, or what Transformers makes of their absence.

    Raises:
        ModelError: a type other than full or sliding, or not one for each layer.
    """
    types: Sequence[str] = reader.get("layer_types") or default
    strange = sorted(set(types) - {FULL, SLIDING})
    if strange:
        raise refuse("layer_types", strange, f"{FULL}, {SLIDING}")
    if len(types) != layer_count:
        raise ModelError(
            f"config.json: layer_types must be {layer_count}, as num_hidden_layers, "
            f"got {len(types)}"
        )
    return types


def window_size(reader: ConfigReader) -> int | None:
    """`sliding_window`: None where it is null, Transformers' 4096 tokens where it is not said."""
    is_null = reader.has("sliding_window") and reader.get("sliding_window") is None
    return None if is_null else reader.integer("sliding_window", 4096)


def optional_window(reader: ConfigReader) -> int | None:
    """The window of families with `use_sliding_window`; None: it is not used."""
    size = window_size(reader)
    return size if reader.get("use_sliding_window", False) else None


def read_optional_windows(reader: ConfigReader) -> dict[str, Any]:
    """`layer_attention` of families with `use_sliding_window`: later layers may have windows."""
    layer_count = reader.integer("num_hidden_layers")
    window = optional_window(reader)
    first = reader.integer("max_window_layers", 28)
    default = [
        SLIDING if window is not None and layer >= first else FULL for layer in range(layer_count)
    ]
    types = layer_types(reader, layer_count, default)
    if SLIDING not in types:
        return {}
    if window is None:
        raise ModelError("config.json: layer_types has sliding_attention without sliding_window")
    return {
        "layer_attention": tuple(
            LayerAttention(window=window if kind == SLIDING else None) for kind in types
        )
    }


def write_optional_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_optional_windows` reads."""
    windows = [attention.window for attention in config.layer_attention]
    used = {window for window in windows if window is not None}
    if not used:
        return {"use_sliding_window": False, "sliding_window": None}
    (window,) = used
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": windows.index(window),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }


def full_attention_alone(reader: ConfigReader) -> dict[str, Any]:
    """Of families without windows.

    Raises:
        ModelError: the file asks for one.
    """
    types = set(reader.get("layer_types") or [FULL])
    if types != {FULL}:
        raise refuse("layer_types", sorted(types), FULL)
    window, is_used = reader.get("sliding_window"), reader.get("use_sliding_window", True)
    if window is not None and is_used:
        raise refuse("sliding_window", window, "full attention")
    return {}
