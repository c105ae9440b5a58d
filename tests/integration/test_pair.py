"""Teacher, student and client together, over the wire."""

import numpy as np
import pytest

from client.errors import ServiceError
from client.settings import (
    AdamW,
    SamplingParams,
    WeightsRef,
    base_weights,
    batch_settings,
    distribution_example,
    pulled_targets,
    scored_prompt,
    token_example,
)
from tests.integration.batches import LORA, VOCAB, aligned, completions, move, tokens
from tests.support.suites import slow

RESULTS = {"return_log_probs": True, "return_row_losses": True}


def test_student_with_the_teachers_weights_has_no_loss_and_no_gradient(student, run_name):
    """Alignment with prefixes of different lengths would break this at the first row."""
    cases = [(prefix, prefix, completion) for prefix, _, completion in completions()]
    examples, prompts = aligned(cases)
    run = student.create_run(run_name, lora=LORA)
    pull = pulled_targets("main", prompts, top_k=8)
    result = run.forward_backward(examples, batch_settings(**RESULTS), pull=pull)
    assert abs(result.metrics["tail_bucket_kl"]) < 1e-5
    assert result.metrics["top_1_agreement"] == 1.0
    step = run.optim_step(AdamW(learning_rate=0.0), normalization="rows")
    foreign, foreign_prompts = aligned(completions())
    run.forward_backward(
        foreign,
        batch_settings(),
        pull=pulled_targets("main", foreign_prompts, top_k=8),
    )
    other = run.optim_step(AdamW(learning_rate=0.0), normalization="rows")
    assert step.gradient_norm < 1e-4 * other.gradient_norm


def test_log_probs_are_those_of_the_scored_completion_under_the_student_prefix(
    teacher, student, run_name
):
    """The student's log q at the teacher's support, against the teacher scoring the same text."""
    examples, prompts = aligned(completions())
    run = student.create_run(run_name, lora=LORA)
    chunks = teacher.stream_top_k_messages(prompts, 6)
    result = run.forward(examples, batch_settings(**RESULTS), chunks=chunks)
    support = teacher.score(prompts, 6)
    under_student = teacher.score(
        [
            scored_prompt(example.input_tokens.values, score_from=example.target_offset + 1)
            for example in examples
        ],
        VOCAB,
    )
    for example, wanted, dense, outcome in zip(
        examples, support, under_student, result.examples, strict=True
    ):
        full = np.empty_like(dense.log_probs)
        np.put_along_axis(full, dense.token_ids, dense.log_probs, axis=-1)
        expected = np.take_along_axis(full, wanted.token_ids, axis=-1)
        assert outcome.log_probs.shape == (example.distribution_targets.row_count, 6)
        np.testing.assert_allclose(outcome.log_probs, expected, atol=2e-4)


@pytest.mark.parametrize(
    "objective",
    ["tail_bucket", *map(slow, ("renormalized", "truncated", "support"))],
)
def test_pulled_and_inline_targets_give_the_same_gradient_bit_for_bit(
    teacher, student, run_name, objective
):
    examples, prompts = aligned(completions())
    settings = batch_settings(objective, reduction="sequence_mean", **RESULTS)
    adamw = AdamW(learning_rate=1e-2)
    pulled = student.create_run(f"{run_name}-pulled", lora=LORA)
    inline = student.create_run(f"{run_name}-inline", lora=LORA)
    for run in (pulled, inline):
        move(run)
    first = pulled.forward_backward(
        examples, settings, pull=pulled_targets("main", prompts, top_k=5)
    )
    second = inline.forward_backward(
        examples, settings, chunks=teacher.stream_top_k_messages(prompts, 5)
    )
    assert first.loss == second.loss
    assert first.totals.pulled_bytes > 0
    assert second.totals.pulled_bytes == 0
    steps = [run.optim_step(adamw) for run in (pulled, inline)]
    assert steps[0].gradient_norm == steps[1].gradient_norm
    probe = [tokens(1, 30)]
    for left, right in zip(
        student.under(pulled.run_id).stream_top_k(probe, 10),
        student.under(inline.run_id).stream_top_k(probe, 10),
        strict=True,
    ):
        np.testing.assert_array_equal(left.log_probs, right.log_probs)


def test_one_soft_token_of_weight_one_is_bitwise_the_hard_path(student, run_name):
    ids = tokens(3, 24)
    results = []
    for suffix, shape in (("hard", (-1,)), ("soft", (-1, 1))):
        run = student.create_run(f"{run_name}-{suffix}", lora=LORA)
        example = token_example(ids[:-1], target_offset=0, token_ids=ids[1:].reshape(shape))
        settings = batch_settings("cross_entropy", **RESULTS)
        batch = run.forward_backward([example], settings)
        results.append((batch, run.optim_step(AdamW(learning_rate=1e-2))))
    (hard, hard_step), (soft, soft_step) = results
    assert hard.loss == soft.loss
    assert hard_step.gradient_norm == soft_step.gradient_norm
    assert hard.examples[0].log_probs.shape == (23,)
    assert soft.examples[0].log_probs.shape == (23, 1)
    np.testing.assert_array_equal(hard.examples[0].log_probs, soft.examples[0].log_probs[:, 0])


def test_full_support_equals_dense_cross_entropy_plus_the_teachers_entropy(
    teacher, student, run_name
):
    examples, prompts = aligned(completions())
    run = student.create_run(run_name, lora=LORA)
    move(run)
    pull = pulled_targets("main", prompts, top_k=VOCAB)
    kl = run.forward(examples, batch_settings(**RESULTS), pull=pull)
    dense = teacher.score(prompts, VOCAB)
    weighted = [
        token_example(
            example.input_tokens.values,
            target_offset=example.target_offset,
            token_ids=scores.token_ids,
            weights=np.exp(scores.log_probs),
        )
        for example, scores in zip(examples, dense, strict=True)
    ]
    cross_entropy = run.forward(weighted, batch_settings("cross_entropy"))
    entropy = sum(float(scores.entropies.sum()) for scores in dense)
    assert kl.loss == pytest.approx(cross_entropy.loss - entropy, rel=1e-4, abs=1e-3)


def test_split_batch_accumulates_to_the_whole(student, run_name):
    examples, prompts = aligned(completions())
    pull = pulled_targets("main", prompts, top_k=5)
    whole = student.create_run(f"{run_name}-whole", lora=LORA)
    split = student.create_run(f"{run_name}-split", lora=LORA)
    for run in (whole, split):
        move(run)
    whole.forward_backward(examples, batch_settings(), pull=pull)
    for part in (examples[:1], examples[1:]):
        split.forward_backward(part, batch_settings(), pull=pull)
    assert split.state().accumulated_rows == whole.state().accumulated_rows
    steps = [run.optim_step(AdamW(learning_rate=1e-3)) for run in (whole, split)]
    assert steps[0].normalizer == steps[1].normalizer
    assert steps[0].gradient_norm == pytest.approx(steps[1].gradient_norm, rel=1e-5)


@pytest.mark.parametrize("lora", [pytest.param(LORA, id="lora"), slow(None, id="full")])
def test_step_after_loading_a_checkpoint_is_bitwise_the_step_after_saving_it(
    student, run_name, lora
):
    run = student.create_run(run_name, lora=lora)
    move(run)
    ids = tokens(9, 20)
    example = token_example(ids[:-1], target_offset=0, token_ids=ids[1:])
    settings = batch_settings("cross_entropy", **RESULTS)
    run.forward_backward([example], settings)
    saved = run.save_checkpoint("middle")
    first = run.optim_step(AdamW(learning_rate=1e-2))
    first_after = run.forward([example], settings)
    move(run, seed=11)
    loaded = run.load_checkpoint("middle")
    assert loaded.step == saved.step == 1
    assert loaded.accumulated_batches == 1
    at_checkpoint = run.forward([example], settings, weights=WeightsRef(checkpoint="middle"))
    assert run.forward([example], settings).loss == at_checkpoint.loss
    again = run.optim_step(AdamW(learning_rate=1e-2))
    again_after = run.forward([example], settings)
    assert again.gradient_norm == first.gradient_norm
    assert again.update_norm == first.update_norm
    assert again_after.loss == first_after.loss
    np.testing.assert_array_equal(
        again_after.examples[0].log_probs, first_after.examples[0].log_probs
    )
    assert [checkpoint.name for checkpoint in run.list_checkpoints()] == ["middle"]


def test_runs_do_not_touch_each_other_or_the_base(student, run_name):
    still = student.create_run(f"{run_name}-still", lora=LORA)
    moving = student.create_run(f"{run_name}-moving", lora=None)
    probe = [tokens(1, 16)]

    def log_probs(model):
        return np.concatenate([chunk.log_probs for chunk in model.stream_top_k(probe, 5)])

    before = log_probs(student)
    move(moving)
    np.testing.assert_array_equal(log_probs(student), before)
    np.testing.assert_array_equal(log_probs(student.under(moving.run_id, base_weights())), before)
    np.testing.assert_allclose(log_probs(student.under(still.run_id)), before, atol=1e-6)
    assert np.abs(log_probs(student.under(moving.run_id)) - before).max() > 1e-3


def test_sampling_follows_the_chosen_weights(student, run_name):
    run = student.create_run(run_name, lora=None)
    run.save_checkpoint("start")
    prompt = [tokens(1, 8)]
    settings = SamplingParams(max_tokens=12, temperature=0.0, ignore_end_tokens=True)
    base = student.sample(prompt, settings)[0]
    target = np.full(19, 42, np.int32)
    example = token_example(target, target_offset=0, token_ids=target)
    for _ in range(8):
        run.forward_backward([example], batch_settings("cross_entropy"))
        run.optim_step(AdamW(learning_rate=3e-2))
    current = student.under(run_name).sample(prompt, settings)[0]
    saved = student.under(run_name, WeightsRef(checkpoint="start")).sample(prompt, settings)[0]
    of_base = student.under(run_name, base_weights()).sample(prompt, settings)[0]
    assert list(current.token_ids[-6:]) == [42] * 6
    np.testing.assert_array_equal(saved.token_ids, base.token_ids)
    np.testing.assert_array_equal(of_base.token_ids, base.token_ids)


def test_unknown_teacher_is_refused_by_name(student, run_name):
    examples, prompts = aligned(completions())
    run = student.create_run(run_name, lora=LORA)
    pull = pulled_targets("other", prompts, top_k=5)
    with pytest.raises(ServiceError, match=r"header.batch.pull.teacher.*main.*'other'"):
        run.forward_backward(examples, batch_settings(), pull=pull)
    assert run.state().last_sequence_number == 0


def test_results_that_fit_no_message_are_refused_before_anything_changes(student, run_name):
    run = student.create_run(run_name, lora=LORA)
    ids = tokens(4, 256)
    example = distribution_example(
        ids, target_offset=0, prompt_index=0, prompt_offset=1, row_count=255
    )
    pull = pulled_targets("main", [scored_prompt(ids)], top_k=VOCAB)
    with pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED") as caught:
        run.forward_backward([example] * 132, batch_settings(return_log_probs=True), pull=pull)
    assert caught.value.field == "header.batch.return_log_probs"
    assert run.state().last_sequence_number == 0
    move(run)  # nothing is in doubt
