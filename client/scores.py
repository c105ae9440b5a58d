"""Chunks of distributions, put together per prompt, with the stream's contract checked."""

from collections.abc import Iterable, Sequence

from client.errors import BrokenStreamError
from distill.rows import Rows, concatenate
from distill.v1.scoring_pb2 import ScoredPrompt


def assemble_scores(prompts: Sequence[ScoredPrompt], chunks: Iterable[Rows]) -> list[Rows]:
    """Put the chunks of every prompt together, in the order of the prompts.

    Raises:
        BrokenStreamError: the chunks do not tile the requested rows exactly once, in order.
    """
    parts: list[list[Rows]] = [[] for _ in prompts]
    for chunk in chunks:
        if not 0 <= chunk.prompt_index < len(prompts):
            raise BrokenStreamError(f"a chunk names prompt {chunk.prompt_index} of {len(prompts)}")
        parts[chunk.prompt_index].append(chunk)
    return [_whole(index, *both) for index, both in enumerate(zip(prompts, parts, strict=True))]


def _whole(index: int, prompt: ScoredPrompt, parts: Sequence[Rows]) -> Rows:
    """All requested rows of a prompt."""
    first_row = prompt.score_from if prompt.HasField("score_from") else 1
    token_count = len(prompt.token_ids.values)
    wanted = f"[{first_row}, {token_count})"
    if not parts:
        raise BrokenStreamError(f"prompt {index}: rows {wanted} are missing")
    try:
        rows = concatenate(parts)
    except ValueError as error:
        raise BrokenStreamError(f"the service sent chunks that do not fit: {error}") from None
    if (rows.first_row, rows.end_row) != (first_row, token_count):
        raise BrokenStreamError(
            f"prompt {index}: the rows must be {wanted}, got [{rows.first_row}, {rows.end_row})"
        )
    return rows
