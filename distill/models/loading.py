"""From the name of a model to a model in memory."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distill.dtypes import AUTO_DTYPE, COMPUTE_DTYPES
from distill.errors import ModelError
from distill.families.registry import parse_hf_config
from distill.files import read_json_object
from distill.kernels.profile import device_profile
from distill.models.hf_weights import leaves, read_weights
from distill.models.resolve import resolve_reference
from distill.network.config import ModelConfig
from distill.network.functional import Graph, Parameters, build_graph, head_columns
from distill.tokenizer import TextTokenizer

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to compute. Its parameters are read-only and shared by all that use it."""

    name: str
    """For people: the reference, or the last part of its path."""

    config: ModelConfig
    """What it is."""

    graph: Graph = field(repr=False)
    """Static part, for `distill.network.functional`."""

    parameters: Parameters = field(repr=False)
    """Weights: projections and embedding in the compute dtype, norms in float32."""

    head_columns: jax.Array | None = field(default=None, repr=False)
    """The head in a second layout, where that is quicker: see `functional.head_columns`."""

    tokenizer: TextTokenizer
    """Its tokenizer, chat template and end ids."""

    weights_version: str
    """Digest of the weights as stored."""

    parameter_count: int
    """Number of weights; a tied head counts once."""


def load_model(
    reference: str,
    *,
    compute_dtype: str = "float32",
    cache_dir: Path | None = None,
    mask_padded_vocabulary: bool = True,
) -> LoadedModel:
    """Load a model for computing.

    Args:
        reference: a Hugging Face model directory, a `.gguf` file, "smollm2-135m" (the embedded
            default), or a hub id "organisation/name". GGUF is converted once into the cache.
        compute_dtype: "float32", "bfloat16", or "auto" for the one that suits the device.
        cache_dir: where conversions are kept; None: $DISTILL_CACHE_DIR, or the user's cache.
        mask_padded_vocabulary: give the rows of the vocabulary that the tokenizer has no ids for
            no probability.

    Raises:
        ModelError: the model cannot be found, is incomplete, or of a kind not supported.
    """
    if compute_dtype == AUTO_DTYPE:
        compute_dtype = device_profile().auto_compute_dtype
    if compute_dtype not in COMPUTE_DTYPES:
        allowed = ", ".join((AUTO_DTYPE, *COMPUTE_DTYPES))
        raise ModelError(f"compute_dtype: must be one of {allowed}, got {compute_dtype!r}")
    resolved = resolve_reference(reference, cache_dir)
    config = parse_hf_config(read_json_object(resolved.directory / "config.json"))
    tokenizer = TextTokenizer.from_directory(resolved.directory)
    if tokenizer.base_vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.base_vocab_size} ids, "
            f"more than the model's vocabulary of {config.vocab_size}"
        )
    if tokenizer.vocab_size > config.vocab_size:
        # Gemma 3's tokenizer has a token for pictures, and its text models have no row for it.
        _LOGGER.warning(
            "the tokenizer has added tokens of ids up to %d, beyond the model's vocabulary of %d: "
            "a request that names one is refused",
            tokenizer.vocab_size - 1,
            config.vocab_size,
        )
    if mask_padded_vocabulary and tokenizer.vocab_size < config.vocab_size:
        config = replace(config, known_vocab_size=tokenizer.vocab_size)
        _LOGGER.info(
            "masked the %d rows of the vocabulary that the tokenizer has no ids for",
            config.vocab_size - tokenizer.vocab_size,
        )
    graph, shapes = build_graph(config, jnp.dtype(compute_dtype))
    weights, weights_version = read_weights(resolved.directory, config, shapes)
    parameters = _to_device(weights)
    return LoadedModel(
        name=resolved.name,
        config=config,
        graph=graph,
        parameters=parameters,
        head_columns=head_columns(config, parameters),
        tokenizer=tokenizer,
        weights_version=weights_version,
        parameter_count=sum(leaf.size for leaf in leaves(parameters)),
    )


def _to_device(tree: dict[str, Any]) -> dict[str, Any]:
    """The same tree of JAX's arrays; the given one is emptied.

    The leaves move one after the other and each is dropped at once, so host memory never holds two
    copies of the whole. On a CPU nothing is copied: JAX takes aligned arrays as they are.
    """
    moved: dict[str, Any] = {}
    for key in list(tree):
        value = tree.pop(key)
        moved[key] = _to_device(value) if isinstance(value, dict) else jax.device_put(value)
        del value
    return moved
