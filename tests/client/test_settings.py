"""What callers say as messages: supports, and that the client knows every objective."""

import numpy as np
import pytest

from client.settings import (
    DISTRIBUTION_OBJECTIVES,
    OBJECTIVES,
    SampledSupport,
    batch_settings,
    scored_prompt,
    scoring,
    token_example,
)
from distill.ops import objectives
from distill.v1 import training_pb2

NAMED = scored_prompt([1, 2, 3], candidate_ids=np.array([[4, 5], [6, 7]]))
PLAIN = scored_prompt([1, 2, 3])


def test_the_client_knows_the_objectives_and_which_of_them_take_distributions() -> None:
    assert set(OBJECTIVES) == objectives.OBJECTIVES.keys()
    taking = {name for name, spec in objectives.OBJECTIVES.items() if spec.needs_distribution}
    assert set(DISTRIBUTION_OBJECTIVES) == taking
    for name in OBJECTIVES:
        value = batch_settings(name).objective
        assert training_pb2.Objective.Name(value) == f"OBJECTIVE_{name.upper()}"


def test_a_name_that_no_enum_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"^objective: must be one of cross_entropy, .*'kl'$"):
        batch_settings("kl")
    with pytest.raises(ValueError, match=r"^reduction: must be one of sum, sequence_mean, got"):
        batch_settings(reduction="mean")
    with pytest.raises(ValueError, match="jsd_bet"):
        batch_settings(jsd_bet=0.5)


def test_candidates_choose_the_support() -> None:
    message = scoring([NAMED, NAMED])
    assert message.WhichOneof("support") == "candidates"
    assert message.top_k == 0
    assert list(message.prompts[1].candidate_ids.shape) == [2, 2]
    assert list(message.prompts[1].candidate_ids.values) == [4, 5, 6, 7]


def test_a_sampled_support_goes_with_its_size() -> None:
    message = scoring([PLAIN], 5, sampled=SampledSupport(exact_count=2, seed=-1))
    assert message.WhichOneof("support") == "sampled"
    assert (message.top_k, message.sampled.exact_count, message.sampled.seed) == (5, 2, -1)
    assert scoring([PLAIN], 5).WhichOneof("support") is None


@pytest.mark.parametrize(
    ("prompts", "top_k", "sampled", "field"),
    [
        ([NAMED, PLAIN], None, None, "prompts"),
        ([NAMED], 2, None, "top_k"),
        ([NAMED], None, SampledSupport(), "sampled"),
        ([PLAIN], None, None, "top_k"),
    ],
)
def test_supports_that_contradict_themselves_are_refused_before_the_call(
    prompts, top_k, sampled, field
) -> None:
    with pytest.raises(ValueError, match=field):
        scoring(prompts, top_k, sampled=sampled)


def test_candidates_of_another_rank_are_refused() -> None:
    with pytest.raises(ValueError, match=r"candidate_ids: must have 2 dimensions"):
        scored_prompt([1, 2], candidate_ids=np.array([1]))


def test_settings_of_an_objective_travel_only_when_given() -> None:
    names = ("jsd_beta", "clip_low", "clip_high")
    absent = batch_settings()
    assert not any(absent.HasField(name) for name in names)
    given = batch_settings(jsd_beta=0.0, clip_low=0.0, clip_high=0.0)
    assert all(given.HasField(name) for name in names)


def test_advantages_and_old_log_probs_travel_with_their_shape() -> None:
    ids = np.array([[1, 2], [3, 4]])
    example = token_example(
        [1, 2],
        target_offset=0,
        token_ids=ids,
        advantages=ids * 0.5,
        old_log_probs=-ids.astype(float),
    )
    message = example.token_targets
    assert not message.HasField("weights")
    assert list(message.advantages.shape) == list(message.old_log_probs.shape) == [2, 2]
    assert list(message.old_log_probs.values) == [-1, -2, -3, -4]
