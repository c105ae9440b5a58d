"""The models that are measured, each in memory and as a directory that the other sides can read."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill.models.loading import LoadedModel, load_model
from distill.models.references import EMBEDDED_NAME
from distill.models.resolve import resolve_reference
from distill.models.write_directory import write_hf_directory
from distill.network.config import ModelConfig
from distill.network.functional import build_graph
from distill.tokenizer import TextTokenizer

LARGE_VOCABULARY = "random-v151936"
"""A model whose head is most of it, as in the small models with a large vocabulary."""

MODEL_NAMES = (EMBEDDED_NAME, LARGE_VOCABULARY)

LARGE_VOCABULARY_CONFIG = ModelConfig(
    family="llama",
    vocab_size=151936,
    hidden_size=512,
    intermediate_size=1536,
    layer_count=8,
    head_count=8,
    key_value_head_count=4,
    head_dim=64,
    norm_epsilon=1e-5,
    rope_theta=1e6,
    tied_head=True,
    max_position_count=8192,
)


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A model to measure."""

    name: str
    """In the results."""

    directory: Path
    """In Hugging Face form."""

    loaded: LoadedModel
    """In memory."""


def open_model(name: str, dtype: str, scratch: Path) -> BenchModel:
    """Load a model; the random one is written first.

    Args:
        name: of MODEL_NAMES, or any reference that `load_model` takes.
        dtype: "float32" or "bfloat16", for computing.
        scratch: where the random model may be written.
    """
    if name == LARGE_VOCABULARY:
        directory = scratch / name
        if not directory.is_dir():
            write_random_model(LARGE_VOCABULARY_CONFIG, directory)
    else:
        directory = resolve_reference(name).directory
    loaded = load_model(
        # The random model has the tokenizer of another; all its vocabulary is measured.
        str(directory),
        compute_dtype=dtype,
        mask_padded_vocabulary=False,
    )
    return BenchModel(name=name, directory=directory, loaded=loaded)


def write_random_model(config: ModelConfig, directory: Path) -> None:
    """Write random weights, with the embedded model's tokenizer, which no measurement uses."""
    _, shapes = build_graph(config, np.float32)
    generator = np.random.default_rng(0)

    def random_leaf(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray[Any, Any]:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        noise = generator.standard_normal(leaf.shape, dtype=np.float32)
        # An embedding has a hidden size per row, a kernel [..., in, out] that many inputs.
        fan_in = leaf.shape[-1] if path[-1].key == "embedding" else leaf.shape[-2]
        scaled: np.ndarray[Any, Any] = noise * np.float32(fan_in**-0.5)
        return scaled

    parameters = jax.tree_util.tree_map_with_path(random_leaf, shapes)
    tokenizer = TextTokenizer.from_directory(resolve_reference(EMBEDDED_NAME).directory)
    write_hf_directory(config, parameters, tokenizer, directory)


def scratch_directory() -> "tempfile.TemporaryDirectory[str]":
    """Gone when the benchmark ends."""
    return tempfile.TemporaryDirectory(prefix="distill-bench-")
