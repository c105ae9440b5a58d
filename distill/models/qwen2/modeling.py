"""Qwen2 and Qwen2.5, the dense models (https://arxiv.org/abs/2407.10671)."""

from distill.models.decoder import Decoder


class Qwen2(Decoder):
    """The shared decoder with biases in the projections to queries, keys and values."""
