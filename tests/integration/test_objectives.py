"""Objectives that need more than a top K, over the wire: named supports, draws and advantages."""

import numpy as np
import pytest

from client.errors import ServiceError
from client.recipes.batches import AlignedSequence, align
from client.settings import (
    AdamW,
    SampledSupport,
    SamplingParams,
    batch_settings,
    pulled_targets,
    scored_prompt,
    token_example,
    with_candidates,
)
from tests.integration.batches import LORA, VOCAB, move, tokens
from tests.support.suites import slow

REVERSE = batch_settings("reverse_tail_bucket")
PREFIXES = [(tokens(100 + seed, 4 + seed), tokens(200 + seed, 15 - 2 * seed)) for seed in range(3)]


def on_policy_batch(student, run, *, same_prefix, top_k=8, seed=1):
    """What docs/objectives.md shows: the student samples, and names its own top K as the support
    on which the teacher scores the samples."""
    prefixes = [(own, own if same_prefix else theirs) for own, theirs in PREFIXES]
    sampling = SamplingParams(max_tokens=9, seed=seed, ignore_end_tokens=True)
    completions = student.under(run.run_id).sample([own for own, _ in prefixes], sampling)
    batch = align(
        [
            AlignedSequence(
                student_prompt=prefixes[completion.prompt_index][0],
                teacher_prompt=prefixes[completion.prompt_index][1],
                completion=completion.token_ids,
            )
            for completion in completions
        ]
    )
    own_prompts = [
        scored_prompt(
            np.concatenate([prefixes[c.prompt_index][0], c.token_ids]),
            score_from=len(prefixes[c.prompt_index][0]),
        )
        for c in completions
    ]
    supports = student.under(run.run_id).score(own_prompts, top_k)
    prompts = [
        with_candidates(prompt, support.token_ids)
        for prompt, support in zip(batch.prompts, supports, strict=True)
    ]
    return batch.examples, prompts, supports


def test_a_teacher_equal_to_the_student_has_no_reverse_kl_and_no_gradient(
    teacher, student, run_name
):
    run = student.create_run(run_name, lora=LORA)
    steps = []
    for same_prefix in (True, False):
        examples, prompts, supports = on_policy_batch(student, run, same_prefix=same_prefix)
        scores = teacher.score(prompts)
        for named, support in zip(scores, supports, strict=True):
            np.testing.assert_array_equal(named.token_ids, support.token_ids)
            if same_prefix:
                np.testing.assert_allclose(named.log_probs, support.log_probs, atol=2e-5)
                np.testing.assert_allclose(named.tail_log_probs, support.tail_log_probs, atol=2e-5)
        chunks = teacher.stream_top_k_messages(prompts)
        result = run.forward_backward(examples, REVERSE, chunks=chunks)
        steps.append((result, run.optim_step(AdamW(learning_rate=0.0))))
    (same, same_step), (other, other_step) = steps
    assert abs(same.loss) < 1e-5 * same.totals.row_count
    assert other.loss > 1e-3 * other.totals.row_count
    assert same_step.gradient_norm < 1e-4 * other_step.gradient_norm


@pytest.mark.parametrize("objective", ["reverse_tail_bucket", slow("jsd")])
def test_pulled_and_relayed_candidates_train_alike_bit_for_bit(
    teacher, student, run_name, objective
):
    runs = [student.create_run(f"{run_name}-{way}", lora=LORA) for way in ("pull", "inline")]
    for run in runs:
        move(run)
    examples, prompts, _ = on_policy_batch(student, runs[0], same_prefix=False)
    settings = batch_settings(objective, jsd_beta=0.3 if objective == "jsd" else None)
    pulled = runs[0].forward_backward(examples, settings, pull=pulled_targets("main", prompts))
    inline = runs[1].forward_backward(
        examples, settings, chunks=teacher.stream_top_k_messages(prompts)
    )
    assert pulled.loss == inline.loss
    norms = [run.optim_step(AdamW(learning_rate=1e-3)).gradient_norm for run in runs]
    assert norms[0] == norms[1]


def test_on_policy_steps_lower_the_reverse_kl(student, run_name):
    run = student.create_run(run_name, lora=LORA)
    held_out = on_policy_batch(student, run, same_prefix=False, seed=99)

    def held_out_loss():
        pull = pulled_targets("main", held_out[1])
        return run.forward(held_out[0], REVERSE, pull=pull).loss

    before = held_out_loss()
    for step in range(10):
        examples, prompts, _ = on_policy_batch(student, run, same_prefix=False, seed=step)
        run.forward_backward(examples, REVERSE, pull=pulled_targets("main", prompts))
        run.optim_step(AdamW(learning_rate=1e-2))
    assert held_out_loss() < 0.6 * before


def test_an_exact_head_of_all_but_one_token_gives_the_dense_cross_entropy(student, run_name):
    run = student.create_run(run_name, lora=LORA)
    move(run)
    sequences = [
        AlignedSequence(student_prompt=own, teacher_prompt=theirs, completion=tokens(seed, 7))
        for seed, (own, theirs) in enumerate(PREFIXES)
    ]
    batch = align(sequences)
    sampled = run.forward(
        batch.examples,
        batch_settings("sampled"),
        pull=pulled_targets(
            "main",
            batch.prompts,
            top_k=VOCAB,
            sampled=SampledSupport(exact_count=VOCAB - 1),
        ),
    )
    dense = run.forward(
        batch.examples,
        batch_settings(),
        pull=pulled_targets("main", batch.prompts, top_k=VOCAB),
    )
    entropy = dense.metrics["teacher_entropy"] * dense.totals.row_count
    assert sampled.loss == pytest.approx(dense.loss + entropy, rel=1e-4)
    assert sampled.metrics["teacher_entropy"] == pytest.approx(dense.metrics["teacher_entropy"])


def test_draws_are_the_same_pulled_and_relayed_alone_and_together(teacher, student, run_name):
    batch = align(
        [
            AlignedSequence(student_prompt=own, teacher_prompt=theirs, completion=tokens(seed, 7))
            for seed, (own, theirs) in enumerate(PREFIXES)
        ]
    )
    support = SampledSupport(exact_count=2, seed=7)
    together = teacher.score(batch.prompts, 6, sampled=support)
    for prompt, scores in zip(batch.prompts, together, strict=True):
        (alone,) = teacher.score([prompt], 6, sampled=support)
        np.testing.assert_array_equal(alone.token_ids, scores.token_ids)
        np.testing.assert_allclose(alone.draw_weights, scores.draw_weights, rtol=1e-5)
    settings = batch_settings("sampled")
    losses = []
    for way in ("pull", "inline"):
        run = student.create_run(f"{run_name}-{way}", lora=LORA)
        if way == "pull":
            pull = pulled_targets("main", batch.prompts, top_k=6, sampled=support)
            result = run.forward_backward(batch.examples, settings, pull=pull)
        else:
            chunks = teacher.stream_top_k_messages(batch.prompts, 6, sampled=support)
            result = run.forward_backward(batch.examples, settings, chunks=chunks)
        losses.append((result.loss, run.optim_step(AdamW(learning_rate=1e-3)).gradient_norm))
    assert losses[0] == losses[1]
    with pytest.raises(ServiceError, match=r"chunks\[0\].draw_weights: .*tail_bucket"):
        run.forward(
            batch.examples,
            batch_settings(),
            chunks=teacher.stream_top_k_messages(batch.prompts, 6, sampled=support),
        )


@pytest.mark.parametrize("objective", ["ppo", slow("importance_sampling")])
def test_samples_of_the_run_itself_have_a_ratio_of_one(student, run_name, objective):
    run = student.create_run(run_name, lora=LORA)
    move(run)
    prompts = [own for own, _ in PREFIXES]
    sampling = SamplingParams(max_tokens=9, seed=3, ignore_end_tokens=True)
    advantages = np.linspace(-1.5, 2.0, 9, dtype=np.float32)
    examples = [
        token_example(
            np.concatenate([prompts[c.prompt_index], c.token_ids[:-1]]),
            target_offset=len(prompts[c.prompt_index]) - 1,
            token_ids=c.token_ids,
            advantages=advantages,
            old_log_probs=c.log_probs,
        )
        for c in student.under(run.run_id).sample(prompts, sampling)
    ]
    settings = batch_settings(objective, return_row_losses=True)
    result = run.forward_backward(examples, settings)
    for example in result.examples:
        np.testing.assert_allclose(example.row_losses, -advantages, atol=2e-3)
    assert run.optim_step(AdamW(learning_rate=1e-3)).gradient_norm > 0
