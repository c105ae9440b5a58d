"""How large the workloads are."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all cases' workloads."""

    dense_lengths: tuple[int, ...] = (256,) * 4
    """Of the dense cases: 1024 tokens, the services' call."""

    top_k: int = 20
    """K."""

    ragged_prompts: int = 32
    """Of the teacher's ragged case."""

    ragged_sequences: int = 8
    """Of the student's: training takes about four times as long."""

    ragged_longest: int = 1024
    """Tokens of the longest."""

    ragged_shortest: int = 16
    """Bound of the shortest."""

    context_tokens: int = 768
    """Of the shared prefix."""

    completion_tokens: int = 64
    """Of each completion."""

    completions: int = 8
    """Of one context."""

    sampling_prompts: int = 8
    """Sampled together, and one at a time."""

    sampling_prompt_tokens: int = 64
    """Of each."""

    new_tokens: int = 64
    """Sampled for each."""

    memory_lengths: tuple[int, ...] = (256,) * 16
    """Of the memory case: 4096 rows."""


FULL = Sizes()

QUICK = Sizes(
    dense_lengths=(128,) * 2,
    ragged_prompts=8,
    ragged_sequences=4,
    ragged_longest=192,
    context_tokens=192,
    completion_tokens=16,
    new_tokens=16,
)
"""For a look within minutes; short sequences flatter the padded sides."""
