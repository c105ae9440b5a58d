"""The weights a computation runs under."""

from dataclasses import dataclass

import jax

from distill.models.loading import LoadedModel
from distill.network.functional import Adapter, Parameters


@dataclass(frozen=True)
class ModelWeights:
    """Base parameters and, beside them, an adapter.

    Compiled functions take them as arguments and never as constants, so that all runs and the base
    model share the compiled code.
    """

    parameters: Parameters
    """The base model's, or those of a run that trains all weights."""

    adapter: Adapter | None
    """A LoRA adapter, already scaled by alpha / rank; None: no adapter."""

    head_columns: jax.Array | None = None
    """A second copy of the head, by `functional.head_columns`, where that is quicker."""


def base_weights(model: LoadedModel, adapter: Adapter | None = None) -> ModelWeights:
    """A model as it was loaded, with an adapter or without."""
    return ModelWeights(model.parameters, adapter, model.head_columns)
