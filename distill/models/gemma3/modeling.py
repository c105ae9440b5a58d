"""Gemma 3, the text model (https://arxiv.org/abs/2503.19786)."""

from distill.models.decoder import Decoder


class Gemma3(Decoder):
    """The shared decoder: local layers with a window between global ones, each with its own rotary
    base; zero-centred norms before and after both blocks; scaled embeddings; a GELU gate."""
