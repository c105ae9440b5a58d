"""A finished sample: one type, from the sampler to the client. NumPy alone."""

from dataclasses import dataclass, field
from enum import StrEnum

from distill.arrays import FloatArray, Int32Array


class StopReason(StrEnum):
    """Why a sample ended, by the names of the contract's enum."""

    STOP = "stop"
    """A stop token or a stop string."""

    LENGTH = "length"
    """The most tokens asked for, or the model's longest context."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A finished sample of N tokens; fields as in the message `SampledSequence`."""

    prompt_index: int
    """Index of the prompt in the request."""

    sample_index: int
    """Index among the samples of that prompt."""

    token_ids: Int32Array = field(metadata={"ranks": (1,)})
    """Generated tokens, [N], the stop token included."""

    log_probs: FloatArray = field(metadata={"ranks": (1,)})
    """Log-probability of each, [N], over the full vocabulary after temperature."""

    stop_reason: StopReason
    """Why it ended."""

    text: str
    """The decoded text without special tokens."""
