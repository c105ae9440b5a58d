"""Bad examples are refused by name, each by itself and beside those before it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.tensors import encode_int32
from distill.v1 import tensor_pb2, training_pb2
from student_service.edge.examples import ExampleParser
from student_service.training.batch import LossSettings, NamedTokens
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
    with pytest.raises(
        LimitExceededError,
        match=r"examples\[2\].input_tokens: must be at most 40 tokens .* together, got 48",
    ):
        parse_all([token_example(length=16)] * 3)


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
