"""Gradients and steps on a tiny model, against plain dense JAX and NumPy float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.errors import NonFiniteGradientError
from distill.models.loading import load_model
from distill.network.adapters import LoraSpec
from distill.network.functional import head_kernel, hidden_states
from student_service.training.optimizer import AdamWSettings
from student_service.training.outcomes import summarize
from student_service.training.trainer import Trainer
from tests.student_service.batches import batch_of, distribution_example, ragged, token_example
from tests.student_service.training.dense import (
    assert_trees_close,
    assert_trees_equal,
    dense_loss,
    moved_trainable,
    run,
)
from tests.support.suites import slow
from tests.support.tiny_models import write_tiny_model

LORA = LoraSpec(rank=3, alpha=6.0, target_modules=("q_proj", "down_proj"), seed=5)
HEAD_LORA = LoraSpec(rank=2, alpha=6.0, target_modules=("v_proj", "lm_head"), seed=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(write_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def trainer(model):
    return Trainer(model, token_budget=256, remat=False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["lora", slow("full")])
def lora(request):
    return LORA if request.param == "lora" else None


def test_bfloat16_gradients_are_those_of_float32_but_for_rounding(tmp_path, trainer, lora, rng):
    half = load_model(str(write_tiny_model(tmp_path)), compute_dtype="bfloat16")
    batch = batch_of(ragged(rng, half.config.vocab_size))
    own = run(
        Trainer(half, token_budget=256, remat=False), moved_trainable(trainer, lora), lora, batch
    )
    exact = run(trainer, moved_trainable(trainer, lora), lora, batch)
    np.testing.assert_allclose(own.batch.loss, exact.batch.loss, rtol=0.02)
    for mine, other in zip(
        jax.tree.leaves(own.gradients), jax.tree.leaves(exact.gradients), strict=True
    ):
        assert mine.dtype == jnp.float32
        assert jnp.linalg.norm(mine - other) < 0.05 * jnp.linalg.norm(other)


@pytest.mark.parametrize(
    ("lora", "objective", "sequence_mean"),
    [
        ("lora", "tail_bucket", False),
        *(
            slow(*case)
            for case in (
                ("full", "cross_entropy", True),
                ("lora", "cross_entropy", True),
                ("lora", "cross_entropy", False),
                ("lora", "tail_bucket", True),
                ("full", "tail_bucket", True),
                ("full", "tail_bucket", False),
                ("full", "cross_entropy", False),
            )
        ),
    ],
    indirect=["lora"],
)
def test_gradient_of_a_ragged_batch_equals_the_dense_one(
    model, trainer, rng, lora, objective, sequence_mean
):
    make = distribution_example if objective == "tail_bucket" else token_example
    extra = {} if objective == "tail_bucket" else {"support_size": 4, "hard": False}
    examples = ragged(rng, model.config.vocab_size, make, **extra)
    if objective == "tail_bucket":
        weights = examples[1].row_weights.copy()
        weights[3:9] = 0.0
        weights[10] = 2.5
        examples[1] = replace(examples[1], row_weights=weights)
    batch = batch_of(examples, objective, sequence_mean=sequence_mean, temperature=0.8)
    trainable = moved_trainable(trainer, lora)
    outcome = run(trainer, trainable, lora, batch)
    value, gradient = jax.jit(jax.value_and_grad(dense_loss(model, lora, batch)))(trainable)
    np.testing.assert_allclose(outcome.batch.loss, value, rtol=1e-5)
    assert_trees_close(outcome.gradients, gradient)


def test_hard_targets_are_bitwise_soft_targets_with_one_token(model, trainer, rng, lora):
    hard = ragged(rng, model.config.vocab_size, token_example)
    soft = [replace(e, targets=replace(e.targets, hard=False)) for e in hard]
    trainable = moved_trainable(trainer, lora)
    first = run(trainer, trainable, lora, batch_of(hard, "cross_entropy"))
    second = run(trainer, trainable, lora, batch_of(soft, "cross_entropy"))
    assert first.batch.loss == second.batch.loss
    assert_trees_equal(first.gradients, second.gradients)
    assert first.batch.examples[0].log_probs.shape == (6,)
    assert second.batch.examples[0].log_probs.shape == (6, 1)


def test_batch_split_in_two_accumulates_to_the_whole(model, trainer, rng, lora):
    examples = ragged(rng, model.config.vocab_size)
    trainable = moved_trainable(trainer, lora)
    whole = run(trainer, trainable, lora, batch_of(examples))
    parts = [run(trainer, trainable, lora, batch_of(part)) for part in (examples[:1], examples[1:])]
    total = trainer.accumulate(parts[0].gradients, parts[1].gradients)
    assert_trees_close(total, whole.gradients, relative=1e-5)
    assert sum(part.batch.loss for part in parts) == pytest.approx(whole.batch.loss, rel=1e-6)


def test_results_come_back_in_the_order_and_shape_of_the_targets(model, trainer, rng):
    examples = ragged(rng, model.config.vocab_size)
    trainable = moved_trainable(trainer, LORA)
    together = run(trainer, trainable, LORA, batch_of(examples)).batch
    for example, result in zip(examples, together.examples, strict=True):
        alone = run(trainer, trainable, LORA, batch_of([example])).batch.examples[0]
        assert result.log_probs.shape == example.token_ids.shape
        np.testing.assert_allclose(result.log_probs, alone.log_probs, atol=1e-5)
        np.testing.assert_allclose(result.row_losses, alone.row_losses, atol=1e-5)


def test_rows_of_weight_zero_contribute_exactly_nothing(model, trainer, rng, lora):
    vocab_size = model.config.vocab_size
    example = distribution_example(rng, length=30, offset=4, row_count=20, vocab_size=vocab_size)
    weights = np.ones(20, np.float32)
    weights[12:] = 0.0
    masked = replace(example, row_weights=weights)
    values = masked.targets.log_probs.copy()
    values[12:] = -np.inf
    poisoned = replace(masked, targets=replace(masked.targets, log_probs=values))
    trainable = moved_trainable(trainer, lora)
    clean = run(trainer, trainable, lora, batch_of([masked]))
    other = run(trainer, trainable, lora, batch_of([poisoned]))
    assert clean.batch.loss == other.batch.loss
    assert_trees_equal(clean.gradients, other.gradients)
    assert not clean.batch.examples[0].log_probs[12:].any()


def test_batch_without_any_weight_has_no_gradient_and_no_metrics(model, trainer, rng):
    example = distribution_example(
        rng,
        length=12,
        offset=2,
        row_count=5,
        vocab_size=model.config.vocab_size,
        row_weights=np.zeros(5, np.float32),
    )
    outcome = run(trainer, moved_trainable(trainer, LORA), LORA, batch_of([example]))
    assert outcome.gradients is None
    assert outcome.batch.loss == 0.0
    assert outcome.batch.metrics == {}


def test_remat_changes_memory_and_not_the_gradient(model, trainer, rng, lora):
    batch = batch_of(ragged(rng, model.config.vocab_size))
    trainable = moved_trainable(trainer, lora)
    kept = run(trainer, trainable, lora, batch)
    recomputed = run(Trainer(model, token_budget=256, remat=True), trainable, lora, batch)
    assert_trees_close(recomputed.gradients, kept.gradients, relative=1e-5)


def test_warm_batches_and_steps_compile_nothing(model, rng):
    trainer = Trainer(model, token_budget=256, remat=False)
    trainable = trainer.initial_trainable(LORA)
    state = trainer.initial_optimizer_state(trainable)
    batch = batch_of(ragged(rng, model.config.vocab_size))
    outcome = run(trainer, trainable, LORA, batch)
    trainer.optim_step(trainable, state, outcome.gradients, 1.0, AdamWSettings(learning_rate=1e-3))
    compiled = trainer.compile_count
    other = batch_of(ragged(rng, model.config.vocab_size), temperature=1.5)
    other_lora = replace(LORA, alpha=1.0)
    outcome = run(trainer, trainable, other_lora, other)
    settings = AdamWSettings(
        learning_rate=0.1, beta1=0.5, weight_decay=0.1, epsilon=1e-6, max_gradient_norm=1.0
    )
    trainer.optim_step(trainable, state, outcome.gradients, 7.0, settings)
    assert trainer.compile_count == compiled


def test_non_finite_gradient_is_refused(model, trainer, rng):
    trainable = moved_trainable(trainer, LORA)
    trainable = jax.tree.map(lambda leaf: leaf.at[0, 0, 0].set(jnp.nan), trainable)
    with pytest.raises(NonFiniteGradientError, match="unchanged"):
        run(trainer, trainable, LORA, batch_of(ragged(rng, model.config.vocab_size)))


@pytest.mark.parametrize("max_gradient_norm", [None, 0.1])
def test_steps_equal_adamw_in_float64(trainer, max_gradient_norm):
    """The update of https://arxiv.org/abs/1711.05101, algorithm 2, with its bias corrections."""
    trainable = moved_trainable(trainer, LORA)
    settings = AdamWSettings(
        learning_rate=3e-3,
        beta1=0.8,
        beta2=0.97,
        epsilon=1e-6,
        weight_decay=0.1,
        max_gradient_norm=max_gradient_norm,
    )
    leaves, structure = jax.tree.flatten(trainable)
    expected = [np.asarray(leaf, np.float64) for leaf in leaves]
    first = [np.zeros_like(leaf) for leaf in expected]
    second = [np.zeros_like(leaf) for leaf in expected]
    state = trainer.initial_optimizer_state(trainable)
    rng = np.random.default_rng(3)
    for step in range(1, 5):
        gradient_sum = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in expected]
        outcome = trainer.optim_step(
            trainable, state, jax.tree.unflatten(structure, gradient_sum), 4.0, settings
        )
        trainable, state = outcome.trainable, outcome.optimizer_state
        gradients = [g.astype(np.float64) / 4.0 for g in gradient_sum]
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        assert float(outcome.norms["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
        if max_gradient_norm is not None:
            gradients = [g * min(1.0, max_gradient_norm / norm) for g in gradients]
        for index, g in enumerate(gradients):
            first[index] = 0.8 * first[index] + 0.2 * g
            second[index] = 0.97 * second[index] + 0.03 * g**2
            direction = (first[index] / (1 - 0.8**step)) / (
                np.sqrt(second[index] / (1 - 0.97**step)) + 1e-6
            )
            expected[index] -= 3e-3 * (direction + 0.1 * expected[index])
    for ours, theirs in zip(jax.tree.leaves(trainable), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_metrics_of_a_student_that_is_its_own_teacher(model, trainer, rng):
    """KL 0, full overlap, equal entropies, and a gradient that is rounding noise."""
    tokens = rng.integers(0, model.config.vocab_size, 20).astype(np.int32)
    hidden = hidden_states(model.graph, model.parameters, jnp.asarray(tokens)[None])[0]
    log_p = np.asarray(jax.nn.log_softmax(hidden @ head_kernel(model.config, model.parameters).T))
    ids = np.argsort(-log_p, axis=-1)[:, :5].astype(np.int32)
    values = np.take_along_axis(log_p, ids, axis=-1)
    example = distribution_example(
        rng,
        length=20,
        offset=0,
        row_count=20,
        vocab_size=model.config.vocab_size,
        token_ids=ids,
        log_probs=values,
        tail_log_probs=np.log1p(-np.exp(values.astype(np.float64)).sum(-1)).astype(np.float32),
        entropies=-(np.exp(log_p) * log_p).sum(-1),
    )
    example = replace(example, input_tokens=tokens)
    foreign = distribution_example(
        rng, length=20, offset=0, row_count=20, vocab_size=model.config.vocab_size
    )
    trainable = trainer.initial_trainable(None)
    same = run(trainer, trainable, None, batch_of([example]))
    other = run(trainer, trainable, None, batch_of([foreign]))
    metrics = same.batch.metrics
    assert abs(metrics["tail_bucket_kl"]) < 1e-5
    assert metrics["top_k_overlap"] == 1.0
    assert metrics["top_1_agreement"] == 1.0
    assert metrics["student_entropy"] == pytest.approx(metrics["teacher_entropy"], rel=1e-4)
    assert metrics["student_support_mass"] == pytest.approx(
        metrics["teacher_support_mass"], rel=1e-4
    )
    norms = [
        float(jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(outcome.gradients))))
        for outcome in (same, other)
    ]
    assert norms[0] < 1e-4 * norms[1]


def test_what_is_kept_of_a_micro_batch_are_its_weighted_rows(model, trainer, rng, monkeypatch):
    kept = []

    def spy(batch, sources, rows):
        kept.extend(zip(sources, rows, strict=True))
        return summarize(batch, sources, rows)

    monkeypatch.setattr("student_service.training.trainer.summarize", spy)
    batch = batch_of(ragged(rng, model.config.vocab_size))
    run(trainer, moved_trainable(trainer, LORA), LORA, batch)
    list(trainer.forward(moved_trainable(trainer, LORA), LORA, batch))
    assert kept
    for sources, outcome in kept:
        row_count = sum(len(rows) for _, rows in sources)
        assert all(len(array) == row_count and array.base is None for array in outcome)


def test_results_of_an_example_do_not_depend_on_what_is_packed_beside_it(model, trainer, rng):
    examples = ragged(rng, model.config.vocab_size, distribution_example)
    trainable = moved_trainable(trainer, LORA)
    together = run(trainer, trainable, LORA, batch_of(examples))
    alone = [run(trainer, trainable, LORA, batch_of([example])) for example in examples]
    for packed, single in zip(together.batch.examples, alone, strict=True):
        (own,) = single.batch.examples
        np.testing.assert_allclose(packed.log_probs, own.log_probs, atol=1e-5)
        np.testing.assert_allclose(packed.row_losses, own.row_losses, atol=1e-5, rtol=1e-5)
    total = jax.tree.map(lambda *leaves: sum(leaves), *(single.gradients for single in alone))
    assert_trees_close(together.gradients, total, relative=1e-5)


@pytest.mark.parametrize("batch_count", [6, slow(200)])
def test_a_stream_of_ragged_batches_compiles_few_programs_and_a_warm_step_none(model, batch_count):
    trainer = Trainer(model, token_budget=1024, remat=False)
    trainable = trainer.initial_trainable(LORA)

    def step(seed):
        local = np.random.default_rng(seed)
        examples = []
        for _ in range(local.integers(1, 12)):
            length = int(np.exp(local.uniform(np.log(4), np.log(500))))
            rows = int(local.integers(1, length + 1))
            examples.append(
                distribution_example(
                    local,
                    length=length,
                    offset=length - rows,
                    row_count=rows,
                    vocab_size=model.config.vocab_size,
                )
            )
        outcome = run(trainer, trainable, LORA, batch_of(examples))
        trainer.optim_step(
            trainable,
            trainer.initial_optimizer_state(trainable),
            outcome.gradients,
            1.0,
            AdamWSettings(learning_rate=1e-3),
        )

    for seed in range(batch_count):
        step(seed)
    assert trainer.compile_count <= 12
    before = trainer.compile_count
    for seed in range(0, batch_count, max(1, batch_count // 10)):
        step(seed)
    assert trainer.compile_count == before


def test_a_gradient_whose_norm_overflows_is_refused_before_it_is_kept(model, trainer, rng):
    """Finite elements are not enough: no step could ever divide such a sum."""
    example = token_example(
        rng, length=9, offset=0, row_count=9, vocab_size=model.config.vocab_size, support_size=2
    )
    huge = replace(
        example, targets=replace(example.targets, weights=np.full((9, 2), 1e30, np.float32))
    )
    with pytest.raises(NonFiniteGradientError, match="norm"):
        run(trainer, moved_trainable(trainer, LORA), LORA, batch_of([huge], "cross_entropy"))


def test_gradient_of_an_adapter_on_the_head_equals_the_dense_one(model, trainer, rng):
    example = distribution_example(
        rng, length=12, offset=3, row_count=8, vocab_size=model.config.vocab_size
    )
    batch = batch_of([example], temperature=0.8)
    trainable = moved_trainable(trainer, HEAD_LORA)
    outcome = run(trainer, trainable, HEAD_LORA, batch)
    assert outcome.gradients.keys() == {"v_proj", "lm_head"}
    gradient = jax.jit(jax.grad(dense_loss(model, HEAD_LORA, batch)))(trainable)
    assert_trees_close(outcome.gradients, gradient)
