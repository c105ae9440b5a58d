"""Qwen3, the dense models (https://arxiv.org/abs/2505.09388)."""

from flax import nnx
from jax.typing import DTypeLike

from distill.models.config import ModelConfig
from distill.models.decoder import Decoder


class Qwen3(Decoder):
    """The shared decoder with an RMSNorm over each head's queries and keys, before rotation."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, dtype, query_key_norm=True, rngs=rngs)
