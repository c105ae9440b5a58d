"""A batch and a step that tests of a run send."""

from client.settings import (
    AdamW,
    PulledScoring,
    distribution_example,
    pulled_targets,
    scored_prompt,
)

TEACHER_PROMPT = [9, 8, 7, 6, 1, 2, 3]
EXAMPLE = distribution_example(
    [6, 1, 2], target_offset=0, prompt_index=0, prompt_offset=4, row_count=3
)
STEP = AdamW(learning_rate=1e-3)


def pull() -> PulledScoring:
    """The targets of EXAMPLE, for the student to fetch."""
    prompt = scored_prompt(TEACHER_PROMPT, score_from=4)
    return pulled_targets("main", [prompt], top_k=5)
