"""Qwen3 MoE (https://arxiv.org/abs/2505.09388)."""

from typing import Any, ClassVar

from distill.models.decoder import Decoder
from distill.models.experts import SparseMLP
from distill.models.layers import GatedMLP


class Qwen3Moe(Decoder):
    """Qwen3 whose MLP is a mixture of experts, in all layers or in some."""

    mlps: ClassVar[dict[str, Any]] = {"dense": GatedMLP, "sparse": SparseMLP}
