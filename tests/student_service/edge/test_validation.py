"""What the edge makes of examples and settings; limits, names and settings that it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.tensors import encode_int32
from distill.v1 import tensor_pb2, training_pb2
from student_service.edge.examples import ExampleParser, NamedTokens
from student_service.edge.validation import (
    parse_adamw,
    parse_loss,
    parse_mutation,
    parse_name,
    parse_normalization,
    parse_run_config,
)
from student_service.training.batch import LossSettings
from tests.support.tiny_models import tiny_config
from tests.support.training_messages import policy_example, token_example

VOCAB = 100
LIMITS = RequestLimits(max_sequence_tokens=16, max_top_k=8, max_sequences=3, max_request_tokens=40)
CROSS_ENTROPY = LossSettings(objective="cross_entropy")
TAIL_BUCKET = LossSettings(objective="tail_bucket")
PPO = LossSettings(objective="ppo")
SAMPLED = LossSettings(objective="sampled")


def parse_all(examples, loss=CROSS_ENTROPY):
    parser = ExampleParser(loss, LIMITS, VOCAB)
    return [parser.parse(example, index) for index, example in enumerate(examples)]


def test_advantages_and_old_log_probs_reach_the_batch_in_the_shape_of_the_ids():
    advantages = np.arange(8.0).reshape(4, 2)
    (example,) = parse_all(
        [policy_example((4, 2), advantages=advantages, old_log_probs=-advantages)], PPO
    )
    np.testing.assert_array_equal(example.targets.weights, advantages)
    np.testing.assert_array_equal(example.targets.old_log_probs, -advantages)


def test_limits_name_themselves_and_the_value():
    with pytest.raises(LimitExceededError, match="must be at most 16, got 17"):
        parse_all([token_example(length=17)])
    with pytest.raises(LimitExceededError, match="must be at most 40, got 48"):
        parse_all([token_example(length=16)] * 3)
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
        parse_adamw(training_pb2.AdamW(**{name: value}))


def test_absent_optimizer_settings_take_their_documented_defaults():
    settings = parse_adamw(training_pb2.AdamW(learning_rate=0.5))
    assert (settings.beta1, settings.beta2, settings.epsilon) == (0.9, 0.95, 1e-8)
    assert (settings.weight_decay, settings.max_gradient_norm) == (0.0, None)


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


@pytest.mark.parametrize(
    "name", ["", ".hidden", "..", "a/b", "../a", "/abs", "a\0b", "a b", "x" * 65, "a\n", "ä"]
)
def test_names_that_could_leave_their_directory_are_refused(name):
    with pytest.raises(InvalidFieldError, match="run_id"):
        parse_name(name, "run_id")


@pytest.mark.parametrize("mutation", [(0, 1), (1, 0), (-1, 1), (1, -5)])
def test_epochs_and_numbers_start_at_one(mutation):
    epoch, number = mutation
    with pytest.raises(InvalidFieldError, match="must be at least 1"):
        parse_mutation(
            training_pb2.Mutation(run_id="run", writer_epoch=epoch, sequence_number=number)
        )


def test_unknown_normalization_is_refused():
    with pytest.raises(InvalidFieldError, match="normalization"):
        parse_normalization(17)
    assert parse_normalization(0) == "none"


tensors = st.builds(
    tensor_pb2.Int32Tensor,
    shape=st.lists(st.integers(-3, 5), max_size=3),
    values=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8),
)
floats = st.builds(
    tensor_pb2.FloatTensor,
    shape=st.lists(st.integers(-3, 5), max_size=3),
    values=st.lists(st.floats(width=32), max_size=8),
)
int32s = st.integers(-(2**31), 2**31 - 1)
examples = st.builds(
    training_pb2.Example,
    input_tokens=tensors,
    target_offset=int32s,
    token_targets=st.none()
    | st.builds(
        training_pb2.TokenTargets,
        token_ids=tensors,
        weights=st.none() | floats,
        advantages=st.none() | floats,
        old_log_probs=st.none() | floats,
    ),
    row_weights=st.none() | floats,
) | st.builds(
    training_pb2.Example,
    input_tokens=tensors,
    target_offset=int32s,
    distribution_targets=st.builds(
        training_pb2.DistributionTargets,
        prompt_index=int32s,
        prompt_offset=int32s,
        row_count=int32s,
    ),
    row_weights=st.none() | floats,
)


@st.composite
def near_policy_examples(draw):
    """Mostly right, so that the values are reached and not only the shapes."""
    shape = draw(st.sampled_from([(2,), (2, 1), (2, 3)]))
    count = int(np.prod(shape))
    numbers = st.lists(st.floats(width=32), min_size=count, max_size=count)

    def tensor(values):
        return tensor_pb2.FloatTensor(shape=shape, values=values)

    return training_pb2.Example(
        input_tokens=encode_int32(np.arange(4)),
        token_targets=training_pb2.TokenTargets(
            token_ids=encode_int32(np.arange(count).reshape(shape)),
            advantages=tensor(draw(numbers)),
            old_log_probs=tensor(draw(numbers)),
        ),
    )


@given(
    st.lists(examples | near_policy_examples(), max_size=3),
    st.sampled_from([CROSS_ENTROPY, TAIL_BUCKET, PPO, SAMPLED]),
)
def test_any_example_is_either_refused_by_name_or_safe_to_compute(batch, loss):
    try:
        parsed = parse_all(batch, loss)
    except (InvalidFieldError, LimitExceededError):
        return
    for example in parsed:
        assert ((example.input_tokens >= 0) & (example.input_tokens < VOCAB)).all()
        rows = len(getattr(example.targets, "token_ids", range(0))) or example.targets.row_count
        assert 0 <= example.target_offset <= len(example.input_tokens) - rows
        if isinstance(example.targets, NamedTokens):
            shape = example.targets.token_ids.shape
            old = example.targets.old_log_probs
            assert example.targets.weights.shape == shape
            assert np.isfinite(example.targets.weights).all()
            assert (old is None) == (loss is not PPO)
            assert old is None or (old.shape == shape and (old <= 1e-3).all())
            assert old is None or np.isfinite(old).all()
