"""The models and inputs on which this project is compared with Transformers.

The checked-in fixtures and the tests that run PyTorch use the same ones.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.families.qwen3_5 import KINDS
from distill.families.qwen3_moe import DENSE, SPARSE
from distill.network.config import LayerAttention, LinearRopeScaling
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.experts_config import ExpertsConfig
from distill.tokenizer import TextTokenizer
from tests.support.comparison import FloatArray, SoftTargets, hard_targets, soft_targets
from tests.support.tiny_models import LLAMA3_ROPE, write_tiny_model

FIXTURES = Path(__file__).parent.parent / "fixtures"

REAL_MODEL = "smollm2-135m"
REAL_TOKEN_COUNT = 512
REAL_SUPPORT_SIZE = 20

GRADIENT_SAMPLE_SIZE = {"tiny": 256, "real": 24}
"""About how many entries of a tensor's gradient a fixture keeps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyCase:
    """A random model, rebuilt from its seed wherever it is needed."""

    name: str
    """Of the case and of its fixture."""

    family: str
    """Model family."""

    seed: int
    """Of weights and inputs."""

    overrides: dict[str, Any]
    """Fields of ModelConfig."""

    has_fixture: bool = True
    """Whether it is also compared without PyTorch; each case takes seconds to compile."""

    def write(self, directory: Path) -> Path:
        """Write the model in Hugging Face form."""
        return write_tiny_model(directory, self.family, seed=self.seed, **self.overrides)

    def token_ids(self) -> NDArray[np.int32]:
        """[300]: more than one block of attention queries, and no multiple of one."""
        generator = np.random.default_rng(self.seed)
        return generator.integers(0, self.overrides["vocab_size"], size=300, dtype=np.int32)

    def targets(self) -> dict[str, SoftTargets]:
        """The two losses whose gradients are compared."""
        token_ids = self.token_ids()
        vocab_size = self.overrides["vocab_size"]
        return {
            "hard": hard_targets(token_ids),
            "soft": soft_targets(len(token_ids), vocab_size, support_size=8, seed=self.seed + 1),
        }


_ODD_SIZES = {"vocab_size": 263, "hidden_size": 36, "intermediate_size": 45}

TINY_CASES = {
    case.name: case
    for case in (
        TinyCase(name="llama-tied", family="llama", seed=11, overrides=_ODD_SIZES),
        # One group for all heads, heads that together are wider than the hidden state, and a
        # hidden state of odd width.
        TinyCase(
            name="llama-untied",
            family="llama",
            seed=12,
            overrides=_ODD_SIZES
            | {
                "hidden_size": 35,
                "tied_head": False,
                "head_count": 5,
                "key_value_head_count": 1,
                "head_dim": 10,
            },
        ),
        TinyCase(
            name="llama3-rope",
            family="llama",
            seed=13,
            overrides=_ODD_SIZES | {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE},
        ),
        TinyCase(
            name="qwen3",
            family="qwen3",
            seed=14,
            overrides=_ODD_SIZES | {"head_dim": 14, "rope_theta": 1000000.0, "norm_epsilon": 1e-6},
        ),
        # A window from the second layer on, shorter than the text and no multiple of a block.
        TinyCase(
            name="qwen2",
            family="qwen2",
            seed=16,
            overrides=_ODD_SIZES
            | {
                "tied_head": False,
                "layer_count": 3,
                "layer_attention": (
                    LayerAttention(),
                    LayerAttention(window=37),
                    LayerAttention(window=37),
                ),
            },
        ),
        TinyCase(
            name="mistral",
            family="mistral",
            seed=17,
            overrides=_ODD_SIZES
            | {"tied_head": False, "layer_attention": (LayerAttention(window=29),) * 2},
        ),
        # A window where there are no rotary positions.
        TinyCase(
            name="smollm3",
            family="smollm3",
            seed=18,
            overrides=_ODD_SIZES
            | {
                "tied_head": True,
                "rope_theta": 2000000.0,
                "layer_count": 3,
                "layer_attention": (
                    LayerAttention(),
                    LayerAttention(rotary="none", window=41),
                    LayerAttention(rotary="none"),
                ),
            },
        ),
        # Two periods of local and global layers, the last incomplete.
        TinyCase(
            name="gemma3",
            family="gemma3_text",
            seed=19,
            overrides=_ODD_SIZES
            | {
                "tied_head": True,
                "layer_count": 5,
                "head_dim": 10,
                "rope_theta": 1000000.0,
                "rope_scaling": LinearRopeScaling(factor=8.0),
                "local_rope_theta": 10000.0,
                "query_scalar": 24.0,
                "layer_attention": (
                    LayerAttention(window=23, rotary="local"),
                    LayerAttention(window=23, rotary="local"),
                    LayerAttention(),
                    LayerAttention(window=23, rotary="local"),
                    LayerAttention(window=23, rotary="local"),
                ),
            },
        ),
        TinyCase(
            name="qwen3-moe",
            family="qwen3_moe",
            seed=31,
            overrides=_ODD_SIZES | {"head_dim": 10, "tied_head": False},
        ),
        # Dense and sparse layers in turn, weights that are not normalised, and windows.
        TinyCase(
            name="qwen3-moe-mixed",
            family="qwen3_moe",
            seed=32,
            overrides=_ODD_SIZES
            | {
                "tied_head": True,
                "layer_count": 4,
                "period": (DENSE, SPARSE),
                "experts": ExpertsConfig(
                    expert_count=7, choice_count=3, expert_size=13, is_normalized=False
                ),
                "layer_attention": (LayerAttention(window=120),) * 4,
            },
        ),
        TinyCase(
            name="qwen3_5",
            family="qwen3_5_text",
            seed=27,
            overrides=_ODD_SIZES | {"tied_head": True, "norm_epsilon": 1e-6},
        ),
        TinyCase(
            name="qwen3_5-moe",
            family="qwen3_5_moe_text",
            seed=27,
            has_fixture=False,  # its layers and its experts are in two that have one
            overrides={**_ODD_SIZES, "intermediate_size": 512, "tied_head": False},
        ),
        # No period shorter than the model, a key head for each value head, another convolution.
        TinyCase(
            name="qwen3_5-untied",
            family="qwen3_5_text",
            seed=22,
            has_fixture=False,
            overrides=_ODD_SIZES
            | {
                "tied_head": False,
                "head_count": 5,
                "key_value_head_count": 1,
                "layer_count": 3,
                "period": (
                    KINDS["linear_attention"],
                    KINDS["full_attention"],
                    KINDS["linear_attention"],
                ),
                "delta_net": DeltaNetConfig(
                    key_head_count=3, value_head_count=3, key_width=9, value_width=4, tap_count=3
                ),
                "head_dim": 16,
                "rotary_width": 4,
            },
        ),
    )
}


def real_token_ids(tokenizer: TextTokenizer) -> NDArray[np.int32]:
    """The first 512 tokens of the essay."""
    text = (FIXTURES / "essay.txt").read_text(encoding="utf-8")
    return np.asarray(tokenizer.encode(text)[:REAL_TOKEN_COUNT], dtype=np.int32)


def real_targets(token_ids: NDArray[np.int32], vocab_size: int) -> dict[str, SoftTargets]:
    """The two losses whose gradients are compared on the real model."""
    return {
        "hard": hard_targets(token_ids),
        "soft": soft_targets(len(token_ids), vocab_size, support_size=REAL_SUPPORT_SIZE, seed=15),
    }


def own_token_log_probs(log_probs: FloatArray, token_ids: NDArray[np.int32]) -> FloatArray:
    """log p of each token given those before it, from the second on: [T, V], [T] -> [T - 1]."""
    return np.take_along_axis(log_probs[:-1], token_ids[1:, None].astype(np.int64), -1)[:, 0]


def gradient_sample(gradient: FloatArray, size: int) -> FloatArray:
    """Some `size` to 2 · `size` entries of a gradient, spread over it; all of a smaller one."""
    # An odd step does not stay in a few columns of the usual even widths.
    step = max(1, gradient.size // size) // 2 * 2 + 1 if gradient.size > size else 1
    return np.ascontiguousarray(gradient.ravel()[::step])
