"""Llama (https://arxiv.org/abs/2307.09288)."""

from distill.models.decoder import Decoder


class Llama(Decoder):
    """The shared decoder as it is."""
