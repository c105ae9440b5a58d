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
from tests.student_service.messages import distribution_example, policy_example, token_example

VOCAB = 100
LIMITS = RequestLimits(max_sequence_tokens=16, max_top_k=8, max_sequences=3, max_request_tokens=40)
CROSS_ENTROPY = LossSettings(objective="cross_entropy")
TAIL_BUCKET = LossSettings(objective="tail_bucket")
PPO = LossSettings(objective="ppo")
SAMPLED = LossSettings(objective="sampled")


def parse_all(examples, loss=CROSS_ENTROPY):
    parser = ExampleParser(loss, LIMITS, VOCAB)
    return [parser.parse(example, index) for index, example in enumerate(examples)]


@pytest.mark.parametrize("first", [(4,), (4, 1)])
def test_mixed_ranks_in_a_batch_are_refused_in_either_order(first):
    second = (4, 1) if first == (4,) else (4,)
    with pytest.raises(InvalidFieldError, match=r"examples\[1\].*as in the examples before it"):
        parse_all([token_example(first), token_example(second)])


def test_different_support_sizes_in_a_batch_are_refused():
    with pytest.raises(InvalidFieldError, match=r"examples\[1\].*K must be 3 .* got 2"):
        parse_all([token_example((4, 3)), token_example((4, 2))])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (token_example(weights=np.ones((4, 1))), r"weights.shape: must be that of the token ids"),
        (token_example(weights=np.ones(3)), r"weights.shape: must be that of the token ids \[4\]"),
        (token_example(weights=[1, np.nan, 1, 1]), r"weights: must be finite, got nan"),
        (token_example(weights=[1, np.inf, 1, 1]), r"weights: must be finite, got inf"),
        (token_example(token_ids=[1, 2, 3, 100]), r"token_ids: must be in \[0, 100\), got 100"),
        (token_example(token_ids=[1, 2, -3, 1]), r"token_ids: must be in \[0, 100\), got -3"),
        (token_example((0,)), r"token_ids: must not be empty"),
        (token_example((4, 0)), r"token_ids: must not be empty"),
        (token_example((4, 9)), r"K must be in \[1, 8\], got 9"),
        (token_example((2, 2, 1)), r"must have 1 or 2 dimensions, got 3"),
        (token_example(length=0), r"input_tokens: must have at least 1 token"),
        (token_example(length=3), r"target_offset.*at most -1 for 3 input tokens"),
        (token_example(offset=3), r"target_offset.*at most 2 for 6 input tokens, got 3"),
        (token_example(offset=-1), r"target_offset: must be at least 0"),
        (distribution_example(), r"must be token_targets for the objective cross_entropy"),
        (training_pb2.Example(input_tokens=encode_int32(np.arange(3))), r"got None"),
    ],
)
def test_bad_examples_of_named_tokens_are_refused(example, message):
    with pytest.raises(InvalidFieldError, match=message):
        parse_all([example])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (token_example(advantages=np.ones(4)), r"advantages: the objective cross_entropy does not"),
        (token_example(old_log_probs=np.zeros(4)), r"old_log_probs: the objective cross_entropy"),
    ],
)
def test_advantages_are_refused_where_weights_are_wanted(example, message):
    with pytest.raises(InvalidFieldError, match=message):
        parse_all([example])


@pytest.mark.parametrize("objective", ["importance_sampling", "ppo", "cispo"])
@pytest.mark.parametrize(
    ("example", "message"),
    [
        (policy_example(advantages=None), r"advantages: must be given for the objective"),
        (policy_example(old_log_probs=None), r"old_log_probs: must be given for the objective"),
        (policy_example(weights=np.ones(4)), r"weights: the objective \w+ does not use it"),
        (policy_example(advantages=np.ones(3)), r"advantages.shape: must be .* \[4\], got \[3\]"),
        (policy_example(old_log_probs=-np.ones((4, 1))), r"old_log_probs.shape: must be .*\[4\]"),
        (policy_example(advantages=[1, np.nan, 1, 1]), r"advantages: must be finite, got nan"),
        (policy_example(old_log_probs=[-1, -np.inf, 0, 0]), r"old_log_probs: must be finite, got"),
        (policy_example(old_log_probs=[-1, np.nan, 0, 0]), r"old_log_probs: must be finite, got"),
        (policy_example(old_log_probs=[-1, 0.5, 0, 0]), r"old_log_probs: must be at most .* 0.5"),
        (distribution_example(), r"must be token_targets for the objective"),
    ],
)
def test_bad_examples_of_advantages_are_refused(objective, example, message):
    with pytest.raises(InvalidFieldError, match=message):
        parse_all([example], LossSettings(objective=objective))


def test_advantages_and_old_log_probs_reach_the_batch_in_the_shape_of_the_ids():
    advantages = np.arange(8.0).reshape(4, 2)
    (example,) = parse_all(
        [policy_example((4, 2), advantages=advantages, old_log_probs=-advantages)], PPO
    )
    np.testing.assert_array_equal(example.targets.weights, advantages)
    np.testing.assert_array_equal(example.targets.old_log_probs, -advantages)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (token_example(), r"must be distribution_targets for the objective tail_bucket"),
        (distribution_example(row_count=0), r"row_count: must be at least 1, got 0"),
        (distribution_example(row_count=2**31 - 1), r"row_count: must be at most the 6 input"),
        (distribution_example(prompt_offset=0), r"prompt_offset: must be at least 1, got 0"),
        (distribution_example(prompt_index=-1), r"prompt_index: must be at least 0, got -1"),
        (distribution_example(row_weights=[1.0]), r"row_weights.shape: must be \[4\]"),
        (distribution_example(row_weights=[1, 1, np.nan, 1.0]), r"row_weights: must be finite"),
        (distribution_example(offset=3), r"target_offset"),
    ],
)
def test_bad_examples_of_distributions_are_refused(example, message):
    with pytest.raises(InvalidFieldError, match=message):
        parse_all([example], TAIL_BUCKET)


@pytest.mark.parametrize("shape", [[-1], [-2, -2], [2, 3], [1 << 62, 1 << 62], [4, -1]])
def test_shapes_that_do_not_match_the_values_are_refused(shape):
    example = token_example()
    example.token_targets.token_ids.CopyFrom(
        tensor_pb2.Int32Tensor(shape=shape, values=[1, 1, 1, 1])
    )
    with pytest.raises(InvalidFieldError, match=r"token_ids.shape"):
        parse_all([example])


def test_limits_name_themselves_and_the_value():
    with pytest.raises(LimitExceededError, match="must be at most 16, got 17"):
        parse_all([token_example(length=17)])
    with pytest.raises(LimitExceededError, match="must be at most 40, got 48"):
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
