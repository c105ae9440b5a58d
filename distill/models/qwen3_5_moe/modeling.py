"""Qwen3.5 MoE, the text model."""

from collections.abc import Mapping
from typing import Any, ClassVar

from distill.models.experts import SparseMLP
from distill.models.qwen3_5.modeling import Qwen35


class Qwen35Moe(Qwen35):
    """Qwen3.5 whose MLPs are mixtures of experts, each beside an expert that all tokens visit."""

    mlps: ClassVar[Mapping[str, Any]] = {"sparse": SparseMLP}
