"""SmolLM3 in GGUF files: that every fourth layer does not turn is in llama.cpp, not in the file."""

from typing import Any

from distill.models.config import LayerAttention
from distill.models.gguf_family import GgufFamily
from distill.models.gguf_file import GgufFile


def _read(file: GgufFile) -> dict[str, Any]:
    layers = range(int(file.require_hyperparameter("block_count")))
    return {
        "layer_attention": tuple(
            LayerAttention(rotary="none" if (layer + 1) % 4 == 0 else "default") for layer in layers
        )
    }


SMOLLM3_GGUF = GgufFamily(architecture="smollm3", read=_read)
