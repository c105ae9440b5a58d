"""Windows of attention in config.json, as most families have them. Knows no JAX."""

from typing import Any

from distill.errors import ModelError
from distill.formats.config_reader import ConfigReader, layer_types
from distill.network.config import LayerAttention, ModelConfig, refuse

FULL, SLIDING = "full_attention", "sliding_attention"
"""What `layer_types` calls a layer without a window, and one with it."""


def window_size(reader: ConfigReader) -> int | None:
    """`sliding_window`: None where it is null, Transformers' 4096 tokens where it is absent."""
    is_null = reader.has("sliding_window") and reader.get("sliding_window") is None
    return None if is_null else reader.integer("sliding_window", 4096)


def optional_window(reader: ConfigReader) -> int | None:
    """The window of families with `use_sliding_window`; None where that is false or absent."""
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
    types = layer_types(reader, default, known=(FULL, SLIDING))
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
    """The fields of a family without windows, of which there are none.

    Raises:
        ModelError: the file asks for a window.
    """
    types = set(reader.get("layer_types") or [FULL])
    if types != {FULL}:
        raise refuse("layer_types", sorted(types), FULL)
    window, is_used = reader.get("sliding_window"), reader.get("use_sliding_window", True)
    if window is not None and is_used:
        raise refuse("sliding_window", window, "full attention")
    return {}
