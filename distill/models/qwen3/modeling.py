"""Qwen3, the dense models (https://arxiv.org/abs/2505.09388)."""

from distill.models.decoder import Decoder


class Qwen3(Decoder):
    """The shared decoder with an RMSNorm over each head's queries and keys, before they turn."""
