"""The objectives through the whole trainer: what reaches them; and settings compile nothing."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from distill.models.loading import load_model
from distill.network.adapters import LoraSpec
from student_service.training.trainer import Trainer
from tests.student_service.batches import batch_of, distribution_example, token_example
from tests.student_service.training.dense import (
    assert_trees_close,
    assert_trees_equal,
    moved_trainable,
    run,
)
from tests.support.suites import slow
from tests.support.tiny_models import write_tiny_model

LORA = LoraSpec(rank=3, alpha=6.0, target_modules=("q_proj", "down_proj"), seed=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(write_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def trainer(model):
    return Trainer(model, token_budget=256, remat=False)


@pytest.fixture(scope="module")
def trainable(trainer):
    return moved_trainable(trainer, LORA)


def examples_of(model, make, **fields):
    rng = np.random.default_rng(0)
    size = {"vocab_size": model.config.vocab_size} | fields
    shapes = ((9, 2, 6), (40, 11, 29), (33, 0, 33))
    return [make(rng, length=t, offset=o, row_count=n, **size) for t, o, n in shapes]


def with_old_log_probs(examples, results, shift=0.0):
    """The examples as if they had been sampled by a policy `shift` above the student."""
    return [
        replace(e, targets=replace(e.targets, old_log_probs=result.log_probs + np.float32(shift)))
        for e, result in zip(examples, results, strict=True)
    ]


@pytest.fixture(scope="module")
def on_policy(model, trainer, trainable):
    """Examples with advantages whose old log-probs are the student's own, and the gradient of
    cross entropy with the advantages as weights."""
    examples = examples_of(model, token_example, support_size=3, hard=False)
    weighted = run(trainer, trainable, LORA, batch_of(examples, "cross_entropy"))
    return with_old_log_probs(examples, weighted.batch.examples), weighted


@pytest.mark.parametrize("objective", ["ppo", slow("importance_sampling"), slow("cispo")])
def test_on_policy_the_gradient_is_that_of_weighted_log_probs(
    trainer, trainable, on_policy, objective
):
    examples, weighted = on_policy
    batch = batch_of(examples, objective, clip_low=0.8, clip_high=1.2)
    outcome = run(trainer, trainable, LORA, batch)
    assert_trees_close(outcome.gradients, weighted.gradients)
    if objective != "cispo":
        advantages = sum(float(e.values.sum()) for e in examples)
        assert outcome.batch.loss == pytest.approx(-advantages, abs=1e-3)


def test_clips_reach_the_objective(trainer, trainable, on_policy):
    examples, weighted = on_policy
    ahead = with_old_log_probs(examples, weighted.batch.examples, shift=-np.log(2.0))  # r = 2
    positive = [replace(e, targets=replace(e.targets, weights=np.abs(e.values))) for e in ahead]
    clipped = run(trainer, trainable, LORA, batch_of(positive, "ppo", clip_low=0.8, clip_high=1.2))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(clipped.gradients))
    free = run(trainer, trainable, LORA, batch_of(positive, "ppo", clip_low=0.8, clip_high=4.0))
    half = run(trainer, trainable, LORA, batch_of(positive, "cispo", clip_low=0.0, clip_high=1.0))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, half.gradients)
    assert_trees_close(free.gradients, doubled)


@pytest.mark.parametrize(("beta", "name"), [(1.0, "reverse_tail_bucket"), slow(0.0, "tail_bucket")])
def test_beta_reaches_jsd(model, trainer, trainable, beta, name):
    examples = examples_of(model, distribution_example)
    ours = run(trainer, trainable, LORA, batch_of(examples, "jsd", beta=beta))
    theirs = run(trainer, trainable, LORA, batch_of(examples, name))
    assert ours.batch.loss == pytest.approx(theirs.batch.loss, rel=1e-6)
    assert_trees_close(ours.gradients, theirs.gradients, relative=1e-5)


def test_sampled_weights_are_those_of_cross_entropy_and_row_weights_still_count(
    model, trainer, trainable
):
    examples = examples_of(model, distribution_example)
    weighted, masked = [], []
    for example in examples:
        targets = example.targets
        weights = np.exp(targets.log_probs)
        weights /= weights.sum(-1, keepdims=True)
        row_weights = np.arange(len(weights), dtype=np.float32) % 2
        weighted.append(replace(example, targets=replace(targets, draw_weights=weights)))
        masked.append(
            replace(
                example,
                targets=replace(targets, draw_weights=weights),
                row_weights=row_weights,
            )
        )
    ours = run(trainer, trainable, LORA, batch_of(weighted, "sampled"))
    theirs = run(trainer, trainable, LORA, batch_of(weighted, "cross_entropy"))
    assert_trees_equal(ours.gradients, theirs.gradients)
    assert ours.batch.loss == theirs.batch.loss
    assert ours.batch.metrics["teacher_entropy"] == pytest.approx(
        np.concatenate([e.targets.entropies for e in examples]).mean(), rel=1e-5
    )
    assert "tail_bucket_kl" not in ours.batch.metrics
    half = run(trainer, trainable, LORA, batch_of(masked, "sampled"))
    assert half.batch.row_count == sum(len(e.targets) // 2 for e in examples)


def test_rows_without_an_advantage_cost_no_head_row(trainer, trainable, on_policy):
    examples, _ = on_policy
    values = examples[0].values.copy()
    values[2:] = 0.0
    masked = replace(examples[0], targets=replace(examples[0].targets, weights=values))
    outcome = run(trainer, trainable, LORA, batch_of([masked], "ppo", clip_low=0.8, clip_high=1.2))
    assert outcome.batch.row_count == 2
    assert not outcome.batch.examples[0].log_probs[2:].any()


def test_settings_of_an_objective_compile_nothing(model, trainable, on_policy):
    trainer = Trainer(model, token_budget=256, remat=False)
    pairs = examples_of(model, distribution_example)
    examples, _ = on_policy

    def both(beta, low, high):
        run(trainer, trainable, LORA, batch_of(pairs, "jsd", beta=beta))
        run(trainer, trainable, LORA, batch_of(examples, "ppo", clip_low=low, clip_high=high))

    both(0.5, 0.8, 1.2)
    compiled = trainer.compile_count
    both(0.0, 0.1, 7.0)
    assert trainer.compile_count == compiled


def test_rows_without_a_tail_train_bit_for_bit_as_with_one_where_no_tail_is_read(
    model, trainer, trainable
):
    examples = examples_of(model, distribution_example)
    bare = [
        replace(
            e,
            targets=replace(e.targets, tail_log_probs=None, entropies=None, prompt_log_probs=None),
        )
        for e in examples
    ]
    whole, lacking = (
        run(trainer, trainable, LORA, batch_of(each, "renormalized")) for each in (examples, bare)
    )
    assert_trees_equal(lacking.gradients, whole.gradients)
    assert lacking.batch.loss == whole.batch.loss
    assert whole.batch.metrics.keys() - lacking.batch.metrics.keys() == {
        *("tail_bucket_kl", "teacher_entropy")
    }
