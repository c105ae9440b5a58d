"""A teacher's top-K rows: one type, from the scorer to the gradient. NumPy alone.

The scorer makes `Rows`, `distill.wire` turns them into bytes and reads them back, the client
returns them as `ScoredRows`, the student checks them and trains on them.

Letters: R rows, K support size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.arrays import FloatArray, Int32Array


class TilingError(ValueError):
    """Parts of a prompt's rows overlap or leave a gap."""

    def __init__(self, prompt_index: int, expected_row: int, first_row: int) -> None:
        super().__init__(
            f"the rows of prompt {prompt_index} must be tiled exactly once: expected row "
            f"{expected_row}, got {first_row}"
        )


_PER_TOKEN = {"rank": 2}
_PER_ROW = {"rank": 1}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Distributions of R consecutive rows of one prompt, each on a support of K tokens.

    Row i of a prompt is the distribution over token i given the tokens before it. Log-probabilities
    are normalised over the full vocabulary after temperature. The fields have the names of those of
    the message `TopKChunk`, which says what each promises. The scorer gives all that apply; rows
    that were relayed from another server may lack those that are None by default.
    """

    prompt_index: int
    """Index of the prompt in its request."""

    first_row: int
    """The first of the rows, in prompt coordinates."""

    token_ids: Int32Array = field(metadata=_PER_TOKEN)
    """The support, [R, K]: by descending log-probability; or the candidates as they were named;
    or the exact head, descending, and then the draws."""

    log_probs: FloatArray = field(metadata=_PER_TOKEN)
    """Log-probabilities of the support, [R, K]."""

    prompt_log_probs: FloatArray | None = field(default=None, metadata=_PER_ROW)
    """Log-probability of the prompt's own token, [R]."""

    tail_log_probs: FloatArray | None = field(default=None, metadata=_PER_ROW)
    """Log of the probability outside the support, [R]; -inf where nothing is outside."""

    entropies: FloatArray | None = field(default=None, metadata=_PER_ROW)
    """Entropy of the full distribution in nats, [R]."""

    draw_weights: FloatArray | None = field(default=None, metadata=_PER_TOKEN)
    """Importance weights of a sampled support, [R, K]; 0 in the slots of repeated draws. None: the
    support is not sampled."""

    most_probable: bool = False
    """Whether the support is the K most probable tokens."""

    def __len__(self) -> int:
        """R."""
        return len(self.token_ids)

    @property
    def end_row(self) -> int:
        """One past the last row, in prompt coordinates."""
        return self.first_row + len(self)

    @property
    def support_size(self) -> int:
        """K."""
        size: int = self.token_ids.shape[1]
        return size

    @property
    def byte_count(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def slice(self, first_row: int, end_row: int) -> Self:
        """The rows [first_row, end_row) in prompt coordinates; views of the same memory.

        Raises:
            IndexError: some of them are not here.
        """
        if not self.first_row <= first_row <= end_row <= self.end_row:
            raise IndexError(
                f"rows [{first_row}, {end_row}) are not within [{self.first_row}, {self.end_row})"
            )
        here = slice(first_row - self.first_row, end_row - self.first_row)
        cut: dict[str, Any] = {name: array[here] for name, array in self.arrays().items()}
        return replace(self, first_row=first_row, **cut)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, without absent ones; the first axis of each counts rows."""
        values = {name: getattr(self, name) for name in ARRAY_RANKS}
        return {name: array for name, array in values.items() if array is not None}


@dataclass(frozen=True, kw_only=True)
class ScoredRows(Rows):
    """Rows as a service of this project scores them: only draw weights may be absent."""

    prompt_log_probs: FloatArray = field(metadata=_PER_ROW)
    """As in `Rows`."""

    tail_log_probs: FloatArray = field(metadata=_PER_ROW)
    """As in `Rows`."""

    entropies: FloatArray = field(metadata=_PER_ROW)
    """As in `Rows`."""


ROWS = TypeVar("ROWS", bound=Rows)

ARRAY_RANKS = {each.name: each.metadata["rank"] for each in fields(Rows) if each.metadata}
"""Fields of `Rows` that are arrays, and their ranks: 2 is [R, K], 1 is [R]."""


def check_next(rows: Rows, expected_row: int) -> int:
    """Check that rows go on where the ones before them ended; where the next must begin.

    Raises:
        TilingError: they overlap or leave a gap.
    """
    if rows.first_row != expected_row:
        raise TilingError(rows.prompt_index, expected_row, rows.first_row)
    return rows.end_row


def as_scored(rows: Rows) -> ScoredRows:
    """The same rows, of which nothing is absent.

    Raises:
        ValueError: something is.
    """
    values = {each.name: getattr(rows, each.name) for each in fields(Rows)}
    absent = [name for name in values if values[name] is None and name != "draw_weights"]
    if absent:
        raise ValueError(f"rows of prompt {rows.prompt_index} without {' and '.join(absent)}")
    return ScoredRows(**values)


def concatenate(parts: Sequence[ROWS]) -> ROWS:
    """The rows of consecutive parts of one prompt as one.

    It checks the tiling: parts that pass cover the rows from the first part's first to the last
    part's last exactly once. A single part comes back as it is, several are copied.

    Args:
        parts: at least one, in the order of their rows, all of one prompt and one K.

    Raises:
        TilingError: the parts overlap or leave a gap.
        ValueError: some parts have an array that others lack.
    """
    first = parts[0]
    expected_row = first.first_row
    for part in parts:
        expected_row = check_next(part, expected_row)
    if len(parts) == 1:
        return first  # most prompts are one chunk, which need not be copied
    each = [part.arrays() for part in parts]
    for name in ARRAY_RANKS:
        if len({name in arrays for arrays in each}) > 1:
            raise ValueError(
                f"some parts of prompt {first.prompt_index} have {name} and others have none"
            )
    joined: dict[str, Any] = {
        name: np.concatenate([arrays[name] for arrays in each]) for name in each[0]
    }
    return replace(first, most_probable=all(part.most_probable for part in parts), **joined)
