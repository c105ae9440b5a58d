"""Training a model with experts: an adapter beside frozen experts, and all weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.errors import InvalidFieldError
from distill.families.qwen3_moe import DENSE, SPARSE
from distill.models.loading import load_model
from distill.network.adapters import LoraSpec
from distill.network.experts_config import ExpertsConfig
from distill.v1 import training_pb2
from student_service.edge.validation import parse_run_config
from student_service.training.optimizer import AdamWSettings
from student_service.training.trainer import Trainer
from tests.student_service.batches import batch_of, ragged
from tests.student_service.training.dense import (
    assert_trees_close,
    dense_loss,
    moved_trainable,
    run,
)
from tests.support.suites import slow
from tests.support.tiny_models import tiny_config, write_tiny_model

LORA = LoraSpec(rank=3, alpha=6.0, target_modules=("k_proj", "o_proj"), seed=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    experts = ExpertsConfig(expert_count=6, choice_count=2, expert_size=11, is_normalized=True)
    directory = tmp_path_factory.mktemp("model")
    fields = {"period": (DENSE, SPARSE), "layer_count": 4, "experts": experts, "vocab_size": 300}
    return load_model(str(write_tiny_model(directory, "qwen3_moe", **fields)))


@pytest.fixture(scope="module")
def trainer(model):
    return Trainer(model, token_budget=256, remat=False)


@pytest.mark.parametrize("lora", [slow(LORA, id="lora"), pytest.param(None, id="full")])
def test_gradient_of_a_ragged_batch_equals_the_dense_one(model, trainer, lora):
    """Packed beside others, the tokens of an example choose the same experts as alone."""
    # Two examples: the reference compiles the model once for each.
    batch = batch_of(ragged(np.random.default_rng(0), model.config.vocab_size)[:2])
    trainable = moved_trainable(trainer, lora)
    outcome = run(trainer, trainable, lora, batch)
    value, gradient = jax.jit(jax.value_and_grad(dense_loss(model, lora, batch)))(trainable)
    np.testing.assert_allclose(outcome.batch.loss, value, rtol=1e-5)
    assert_trees_close(outcome.gradients, gradient)
    if lora is None:
        mlp = outcome.gradients["layers"]["sparse"]["mlp"]
        assert jnp.abs(mlp["router"]["kernel"]).max() > 0
        # Every expert of every layer was visited by one of 49 tokens.
        for projection in mlp["experts"].values():
            assert (jnp.abs(projection["kernel"]).max((-1, -2)) > 0).all()


@pytest.mark.parametrize("lora", [slow(LORA, id="lora"), pytest.param(None, id="full")])
def test_steps_lower_the_loss(model, trainer, lora):
    batch = batch_of(ragged(np.random.default_rng(1), model.config.vocab_size))
    trainable = trainer.initial_trainable(lora)
    state = trainer.initial_optimizer_state(trainable)
    losses = []
    for _ in range(4):
        outcome = run(trainer, trainable, lora, batch)
        losses.append(outcome.batch.loss)
        step = trainer.optim_step(
            trainable, state, outcome.gradients, 75.0, AdamWSettings(learning_rate=1e-2)
        )
        trainable, state = step.trainable, step.optimizer_state
    assert losses == sorted(losses, reverse=True)


def test_a_run_with_an_adapter_on_the_experts_is_refused_with_the_reason():
    lora = training_pb2.LoraConfig(rank=2, target_modules=["q_proj", "up_proj"])
    with pytest.raises(
        InvalidFieldError, match=r"config\.lora\.target_modules.*'up_proj': the exp"
    ):
        parse_run_config(training_pb2.RunConfig(lora=lora), tiny_config("qwen3_moe"))


def test_a_run_without_named_targets_adapts_the_attention():
    lora = training_pb2.LoraConfig(rank=2)
    spec = parse_run_config(training_pb2.RunConfig(lora=lora), tiny_config("qwen3_moe"))
    assert spec is not None
    assert spec.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
