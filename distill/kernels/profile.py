"""What suits the device that programs are compiled for: every choice that depends on it.

Who needs such a choice asks for it by its name, and never for the kind of the device.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import jax


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """The choices for one kind of device. Each field says why the kinds differ in it."""

    cuts_bits: bool
    """Whether loops cut and fill bfloat16 arrays as the integers that hold their bits.

    XLA's CPU backend would widen the whole array to float32 for each cut: see `kernels.bits`.
    """

    pins_layouts: bool
    """Whether the factors of a bfloat16 product are laid out row by row before it.

    XLA's CPU backend would widen transposed factors to float32: see `kernels.products`.
    """

    stores_head_columns: bool
    """Whether a bfloat16 head is stored a second time, as the columns [D, V] of its kernel.

    On a CPU its products then take a third of the time: see `kernels.head_kernel`.
    """

    reads_head_kernel_first: bool
    """Whether the head's kernel is the first factor where the rows are few.

    A CPU reads the kernel faster so: see `kernels.head_kernel.FEW_ROWS`.
    """

    sums_head_gradient_as_columns: bool
    """Whether the gradient of the head's kernel is added up as [D, V] and not as [V, D].

    A CPU would have to transpose the cotangent of each chunk: see `kernels.head_kernel`.
    """

    scoring_token_budget: int
    """Most tokens of the piece of the body that scoring computes in one call.

    Short on a CPU, whose time per token is long and where a small product is as efficient; large
    enough on an accelerator to fill it.
    """

    shared_prefix_token_budget: int
    """Most tokens of such a piece where its prompts share a prefix.

    A context and its completions often miss 1024 by little, and would then compute the context
    twice: a piece of twice the length is the cheaper of two evils. At 16384 they seldom do, and
    twice the activations have not been tried.
    """

    prompt_piece_tokens: int
    """Most prompt tokens that sampling reads in one call: for the reasons of
    `scoring_token_budget`."""

    decodes_layer_by_layer: bool
    """Whether decoding is handed every layer's weights as arrays of their own.

    XLA's CPU backend would copy each layer out of the stack for every token: see
    `engine.layer_parts`.
    """

    auto_compute_dtype: Literal["float32", "bfloat16"]
    """The compute dtype that "auto" stands for.

    The one in which the device is fast: exact float32 products are many times slower than bfloat16
    ones on an accelerator, and a CPU is fast in float32.
    """


CPU = DeviceProfile(
    cuts_bits=True,
    pins_layouts=True,
    stores_head_columns=True,
    reads_head_kernel_first=True,
    sums_head_gradient_as_columns=True,
    scoring_token_budget=1024,
    shared_prefix_token_budget=2048,
    prompt_piece_tokens=1024,
    decodes_layer_by_layer=True,
    auto_compute_dtype="float32",
)
"""Measured with XLA's CPU backend: docs/adr/0004-cpu-products-and-memory.md."""

ACCELERATOR = DeviceProfile(
    cuts_bits=False,
    pins_layouts=False,
    stores_head_columns=False,
    reads_head_kernel_first=False,
    sums_head_gradient_as_columns=False,
    scoring_token_budget=16384,
    shared_prefix_token_budget=16384,
    prompt_piece_tokens=16384,
    decodes_layer_by_layer=False,
    auto_compute_dtype="bfloat16",
)
"""Every other device: XLA reads arrays there as they lie, and only long calls fill it."""


def profile_of(platform: str) -> DeviceProfile:
    """The profile of a platform as JAX names it, such as "cpu", "gpu" or "tpu"."""
    return CPU if platform == "cpu" else ACCELERATOR


@cache
def device_profile() -> DeviceProfile:
    """The profile of JAX's default device. The first call makes JAX look for its devices."""
    return profile_of(jax.default_backend())
