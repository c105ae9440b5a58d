"""Chunks of distributions, put together per prompt, with the stream's contract checked."""

from collections.abc import Iterable, Sequence

from client.errors import BrokenStreamError
from client.settings import ScoredPrompt, Tokens
from distill.rows import Rows, concatenate


def scored_prompts(
    prompts: Sequence[Tokens | ScoredPrompt], score_from: int | Sequence[int] | None
) -> list[ScoredPrompt]:
    """The prompts with the first row wanted of each.

    Args:
        prompts: token ids, or prompts that already say it.
        score_from: one row for all the prompts or one for each. None: what the prompts say.

    Raises:
        ValueError: another number of rows than of prompts, or both ways at once.
    """
    if score_from is None or isinstance(score_from, int):
        first_rows: Sequence[int | None] = [score_from] * len(prompts)
    else:
        first_rows = score_from
    if len(first_rows) != len(prompts):
        raise ValueError(
            f"score_from: must have one row per prompt ({len(prompts)}), got {len(first_rows)}"
        )
    scored = []
    for prompt, first_row in zip(prompts, first_rows, strict=True):
        if not isinstance(prompt, ScoredPrompt):
            prompt = ScoredPrompt(token_ids=prompt, score_from=first_row)
        elif first_row is not None:
            raise ValueError("score_from: the prompts say it already")
        scored.append(prompt)
    return scored


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
    first_row = 1 if prompt.score_from is None else prompt.score_from
    wanted = f"[{first_row}, {len(prompt.token_ids)})"
    if not parts:
        raise BrokenStreamError(f"prompt {index}: rows {wanted} are missing")
    try:
        rows = concatenate(parts)
    except ValueError as error:
        raise BrokenStreamError(f"the service sent chunks that do not fit: {error}") from None
    if (rows.first_row, rows.end_row) != (first_row, len(prompt.token_ids)):
        raise BrokenStreamError(
            f"prompt {index}: the rows must be {wanted}, got [{rows.first_row}, {rows.end_row})"
        )
    return rows
