"""Llama (https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783) and SmolLM2."""

from flax import nnx
from jax.typing import DTypeLike

from distill.models.config import ModelConfig
from distill.models.decoder import Decoder


class Llama(Decoder):
    """The shared decoder as it is."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype, query_key_norm=False, rngs=rngs)
