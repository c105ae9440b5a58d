"""Qwen3.5, the text model."""

from collections.abc import Mapping
from typing import Any, ClassVar

from distill.models.attention import Attention
from distill.models.decoder import Decoder
from distill.models.delta_net import DeltaNet


class Qwen35(Decoder):
    """Gated delta-net layers and, every few of them, a layer of gated attention."""

    mixers: ClassVar[Mapping[str, Any]] = {"attention": Attention, "delta_net": DeltaNet}
