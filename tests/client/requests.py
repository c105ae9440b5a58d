"""A batch and a step that tests of a run send."""

from client.settings import AdamW, DistributionExample, PulledTargets, ScoredPrompt

TEACHER_PROMPT = [9, 8, 7, 6, 1, 2, 3]
EXAMPLE = DistributionExample(
    input_tokens=[6, 1, 2], target_offset=0, prompt_index=0, prompt_offset=4, row_count=3
)
STEP = AdamW(learning_rate=1e-3)


def pull() -> PulledTargets:
    """The targets of EXAMPLE, for the student to fetch."""
    prompt = ScoredPrompt(token_ids=TEACHER_PROMPT, score_from=4)
    return PulledTargets(teacher="main", prompts=[prompt], top_k=5)
