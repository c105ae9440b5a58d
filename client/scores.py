"""Chunks of distributions, put together per prompt, with the stream's contract checked."""

from collections.abc import Iterable, Sequence

import numpy as np

from client.errors import BrokenStreamError
from client.results import PromptScores, ScoreChunk
from client.settings import ScoredPrompt, Tokens


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


def assemble_scores(
    prompts: Sequence[ScoredPrompt], chunks: Iterable[ScoreChunk]
) -> list[PromptScores]:
    """Put the chunks of every prompt together, in the order of the prompts.

    Raises:
        BrokenStreamError: the chunks do not tile the requested rows exactly once, in order.
    """
    parts: list[list[ScoreChunk]] = [[] for _ in prompts]
    next_rows = [_first_row(prompt) for prompt in prompts]
    for chunk in chunks:
        index = chunk.prompt_index
        if not 0 <= index < len(prompts):
            raise BrokenStreamError(f"a chunk names prompt {index} of {len(prompts)}")
        if chunk.position_offset != next_rows[index]:
            raise BrokenStreamError(
                f"prompt {index}: the next row is {next_rows[index]}, got {chunk.position_offset}"
            )
        next_rows[index] += len(chunk.token_ids)
        parts[index].append(chunk)
    for index, prompt in enumerate(prompts):
        if next_rows[index] != len(prompt.token_ids):
            raise BrokenStreamError(
                f"prompt {index}: rows end at {next_rows[index]}, must end at "
                f"{len(prompt.token_ids)}"
            )
    return [_join(_first_row(prompt), part) for prompt, part in zip(prompts, parts, strict=True)]


def _first_row(prompt: ScoredPrompt) -> int:
    return 1 if prompt.score_from is None else prompt.score_from


def _join(score_from: int, parts: Sequence[ScoreChunk]) -> PromptScores:
    weights = [part.weights for part in parts if part.weights is not None]
    if len(weights) not in (0, len(parts)):
        raise BrokenStreamError("some chunks of a prompt have weights and others have none")
    return PromptScores(
        score_from=score_from,
        token_ids=np.concatenate([part.token_ids for part in parts]),
        log_probs=np.concatenate([part.log_probs for part in parts]),
        prompt_log_probs=np.concatenate([part.prompt_log_probs for part in parts]),
        tail_log_probs=np.concatenate([part.tail_log_probs for part in parts]),
        entropies=np.concatenate([part.entropies for part in parts]),
        weights=np.concatenate(weights) if weights else None,
    )
