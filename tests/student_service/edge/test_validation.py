"""Bad requests are refused before any compute, with the field, the limit and the value."""

import pytest

from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.v1 import training_pb2
from student_service.edge.validation import (
    check_mutation,
    parse_adamw,
    parse_loss,
    parse_normalization,
    parse_run_config,
)
from tests.support.tiny_models import tiny_config

LIMITS = RequestLimits(max_sequence_tokens=16, max_top_k=8, max_sequences=3, max_request_tokens=40)


def test_too_many_examples_name_the_limit_and_the_value():
    with pytest.raises(LimitExceededError, match="example_count: must be at most 3, got 4"):
        parse_loss(training_pb2.Batch(objective=1, example_count=4), LIMITS)


def test_absent_settings_of_an_objective_take_their_documented_defaults():
    def parsed(objective, **settings):
        value = training_pb2.Objective.Value(f"OBJECTIVE_{objective}")
        return parse_loss(training_pb2.Batch(objective=value, example_count=1, **settings), LIMITS)

    assert parsed("JSD").beta == 0.5
    assert parsed("JSD", jsd_beta=0.0).beta == 0.0
    assert [parsed("PPO").clip_low, parsed("PPO").clip_high] == pytest.approx([0.8, 1.2])
    assert parsed("PPO", clip_low=1.2).clip_low == pytest.approx(1.2)
    assert [parsed("CISPO").clip_low, parsed("CISPO").clip_high] == [0.0, 4.0]
    assert parsed("PPO", clip_low=0.0).clip_low == 0.0
    assert parsed("CISPO", clip_high=0.5).clip_high == 0.5


def test_every_objective_of_the_contract_is_computed_and_the_other_way_round():
    names = {name.removeprefix("OBJECTIVE_").lower() for name, _ in training_pb2.Objective.items()}
    assert names - {"unspecified"} == OBJECTIVES.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", 0.0),
        ("weight_decay", float("inf")),
        ("max_gradient_norm", 0.0),
    ],
)
def test_bad_optimizer_settings_are_refused(name, value):
    with pytest.raises(InvalidFieldError, match=f"adamw.{name}"):
        parse_adamw(training_pb2.AdamW(**{"learning_rate": 0.1, name: value}))


def test_a_step_without_a_learning_rate_is_refused():
    with pytest.raises(InvalidFieldError, match=r"adamw\.learning_rate: must be given"):
        parse_adamw(training_pb2.AdamW())


def test_absent_optimizer_settings_take_their_documented_defaults():
    settings = parse_adamw(training_pb2.AdamW(learning_rate=0.5))
    documented = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
    assert settings == parse_adamw(training_pb2.AdamW(learning_rate=0.5, **documented))
    assert settings.max_gradient_norm is None


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (training_pb2.RunConfig(), "trainable"),
        (training_pb2.RunConfig(lora=training_pb2.LoraConfig(rank=0)), "rank"),
        (training_pb2.RunConfig(lora=training_pb2.LoraConfig(rank=2000)), "rank"),
        (training_pb2.RunConfig(lora=training_pb2.LoraConfig(rank=1, alpha=0.0)), "alpha"),
        (
            training_pb2.RunConfig(lora=training_pb2.LoraConfig(rank=1, target_modules=["head"])),
            "target_modules",
        ),
    ],
)
def test_bad_run_configurations_are_refused(config, field):
    with pytest.raises(InvalidFieldError, match=f"config.*{field}"):
        parse_run_config(config, tiny_config())


def test_order_of_target_modules_does_not_make_another_configuration():
    def spec(*names):
        lora = training_pb2.LoraConfig(rank=2, target_modules=names)
        return parse_run_config(training_pb2.RunConfig(lora=lora), tiny_config())

    assert spec("v_proj", "q_proj") == spec("q_proj", "v_proj")


@pytest.mark.parametrize("mutation", [(0, 1), (1, 0), (-1, 1), (1, -5)])
def test_epochs_and_numbers_start_at_one(mutation):
    epoch, number = mutation
    with pytest.raises(InvalidFieldError, match="must be at least 1"):
        check_mutation(
            training_pb2.Mutation(run_id="run", writer_epoch=epoch, sequence_number=number)
        )


def test_unknown_normalization_is_refused():
    with pytest.raises(InvalidFieldError, match="normalization"):
        parse_normalization(17)
    assert parse_normalization(0) == "none"
