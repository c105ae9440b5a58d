"""Mistral 7B and what has its form (https://arxiv.org/abs/2310.06825)."""

from distill.models.decoder import Decoder


class Mistral(Decoder):
    """The shared decoder; in the first versions all layers look through one window."""
