"""Batches that tests of the two services together send."""

import numpy as np

from client.settings import (
    AdamW,
    LoraConfig,
    batch_settings,
    distribution_example,
    scored_prompt,
    token_example,
)

VOCAB = 512
LORA = LoraConfig(rank=4, seed=1)


def tokens(seed, length):
    return np.random.default_rng(seed).integers(3, VOCAB, length).astype(np.int32)


def completions(count=4):
    """Completions behind two prefixes of different lengths: the student's and the teacher's."""
    cases = []
    for seed in range(count):
        completion = tokens(seed, 5 + 3 * seed)
        cases.append((tokens(100 + seed, 4 + seed), tokens(200 + seed, 21 - 2 * seed), completion))
    return cases


def aligned(cases):
    """Examples and prompts: completion token j is prompt row len(teacher prefix) + j and target
    row len(student prefix) + j - 1."""
    examples, prompts = [], []
    for index, (student_prefix, teacher_prefix, completion) in enumerate(cases):
        prompts.append(
            scored_prompt(
                np.concatenate([teacher_prefix, completion]),
                score_from=len(teacher_prefix),
            )
        )
        examples.append(
            distribution_example(
                np.concatenate([student_prefix, completion]),
                target_offset=len(student_prefix) - 1,
                prompt_index=index,
                prompt_offset=len(teacher_prefix),
                row_count=len(completion),
            )
        )
    return examples, prompts


def move(run, seed=7):
    """One step on random hard targets, so that the adapter is no longer zero."""
    ids = tokens(seed, 20)
    example = token_example(ids[:-1], target_offset=0, token_ids=ids[1:])
    run.forward_backward([example], batch_settings("cross_entropy"))
    run.optim_step(AdamW(learning_rate=1e-2))
