"""The families' modules by name. What needs no JAX is in `hf_families`."""

from typing import Protocol

from flax import nnx
from jax.typing import DTypeLike

from distill.errors import ModelError
from distill.models.config import ModelConfig
from distill.models.decoder import Decoder
from distill.models.llama.modeling import Llama
from distill.models.qwen3.modeling import Qwen3


class ModelClass(Protocol):
    """How a family's module is built."""

    def __call__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs) -> Decoder:
        """A model with random weights of a compute dtype."""


MODEL_CLASSES: dict[str, ModelClass] = {"llama": Llama, "qwen3": Qwen3}


def model_class(family: str) -> ModelClass:
    """The NNX module of a family.

    Raises:
        ModelError: there is none of that name.
    """
    if family not in MODEL_CLASSES:
        known = ", ".join(MODEL_CLASSES)
        raise ModelError(f"model family {family!r} is not supported; supported: {known}")
    return MODEL_CLASSES[family]
