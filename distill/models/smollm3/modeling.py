"""SmolLM3 (https://huggingface.co/blog/smollm3)."""

from distill.models.decoder import Decoder


class SmolLM3(Decoder):
    """The shared decoder; every fourth layer has no rotary positions (arXiv 2501.18795)."""
