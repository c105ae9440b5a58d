"""Chunks of distributions, put together per prompt, with the stream's contract checked."""

from collections.abc import Iterable, Sequence

from client.errors import BrokenStreamError
from distill.rows import ScoredRows, check_next, concatenate
from distill.v1.scoring_pb2 import ScoredPrompt


def assemble_scores(
    prompts: Sequence[ScoredPrompt], chunks: Iterable[ScoredRows]
) -> list[ScoredRows]:
    """Put the chunks of every prompt together, in the order of the prompts.

    Raises:
        BrokenStreamError: the chunks do not tile the requested rows exactly once, in order.
    """
    parts: list[list[ScoredRows]] = [[] for _ in prompts]
    next_rows = [prompt.score_from if prompt.HasField("score_from") else 1 for prompt in prompts]
    try:
        for chunk in chunks:
            index = chunk.prompt_index
            if not 0 <= index < len(prompts):
                raise BrokenStreamError(f"a chunk names prompt {index} of {len(prompts)}")
            # As it comes: a stream that is broken is left at once.
            next_rows[index] = check_next(chunk, next_rows[index])
            parts[index].append(chunk)
        for index, prompt in enumerate(prompts):
            if next_rows[index] != len(prompt.token_ids.values):
                raise BrokenStreamError(
                    f"prompt {index}: rows end at {next_rows[index]}, must end at "
                    f"{len(prompt.token_ids.values)}"
                )
        return [concatenate(each) for each in parts]
    except ValueError as error:
        raise BrokenStreamError(f"the service sent chunks that do not fit: {error}") from None
