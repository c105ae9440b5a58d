"""The weights a computation runs under."""

from dataclasses import dataclass

from distill.models.functional import Adapter, Parameters


@dataclass(frozen=True)
class ModelWeights:
    """Base parameters and, beside them, an adapter.

    An argument of every compiled function and never a constant of one, so that all runs and the
    base model share the compiled code.
    """

    parameters: Parameters
    """The base model's, or those of a run that trains all weights."""

    adapter: Adapter | None
    """A LoRA adapter, already scaled by alpha / rank; None for none."""
