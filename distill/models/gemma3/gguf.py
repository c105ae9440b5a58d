"""Gemma 3 in GGUF files: what llama.cpp takes for granted of this architecture is said here."""

from typing import Any

from distill.models.gemma3.config import LOCAL_THETA, default_types, local_and_global
from distill.models.gguf_family import GgufFamily
from distill.models.gguf_file import GgufFile


def _read(file: GgufFile) -> dict[str, Any]:
    layer_count = int(file.require_hyperparameter("block_count"))
    head_dim = int(file.require_hyperparameter("attention.key_length"))
    # 27B divides by another number, which the file does not hold; llama.cpp knows it by its layers.
    query_scalar = 168.0 if layer_count == 62 else float(head_dim)
    return {
        "layer_attention": local_and_global(
            default_types(layer_count),
            int(file.require_hyperparameter("attention.sliding_window")),
        ),
        "local_rope_theta": LOCAL_THETA,
        "query_scalar": query_scalar,
    }


GEMMA3_GGUF = GgufFamily(
    architecture="gemma3", read=_read, understood=frozenset({"attention.sliding_window"})
)
