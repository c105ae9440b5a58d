"""Settings to messages: supports, and that the client knows every objective of the contract."""

import numpy as np
import pytest

from client.formatting import encode_batch, encode_example, encode_scoring
from client.settings import (
    DISTRIBUTION_OBJECTIVES,
    BatchSettings,
    Objective,
    SampledSupport,
    ScoredPrompt,
    TokenExample,
)
from distill.ops.objectives import OBJECTIVES
from distill.v1 import training_pb2

NAMED = ScoredPrompt(token_ids=[1, 2, 3], candidate_ids=np.array([[4, 5], [6, 7]]))
PLAIN = ScoredPrompt(token_ids=[1, 2, 3])


def test_the_client_knows_the_objectives_and_which_of_them_take_distributions() -> None:
    assert {one.value for one in Objective} == OBJECTIVES.keys()
    taking = {name for name, spec in OBJECTIVES.items() if spec.needs_distribution}
    assert {one.value for one in DISTRIBUTION_OBJECTIVES} == taking
    for one in Objective:
        message = encode_batch(BatchSettings(objective=one), 1, None)
        assert training_pb2.Objective.Name(message.objective) == f"OBJECTIVE_{one.name}"


def test_candidates_choose_the_support() -> None:
    message = encode_scoring([NAMED, NAMED], None, None)
    assert message.WhichOneof("support") == "candidates"
    assert message.top_k == 0
    assert list(message.prompts[1].candidate_ids.shape) == [2, 2]
    assert list(message.prompts[1].candidate_ids.values) == [4, 5, 6, 7]


def test_a_sampled_support_goes_with_its_size() -> None:
    message = encode_scoring([PLAIN], 5, None, SampledSupport(exact_count=2, seed=-1))
    assert message.WhichOneof("support") == "sampled"
    assert (message.top_k, message.sampled.exact_count, message.sampled.seed) == (5, 2, -1)
    assert encode_scoring([PLAIN], 5, None).WhichOneof("support") is None


@pytest.mark.parametrize(
    ("prompts", "top_k", "sampled", "field"),
    [
        ([NAMED, PLAIN], None, None, "prompts"),
        ([NAMED], 2, None, "top_k"),
        ([NAMED], None, SampledSupport(), "sampled"),
        ([PLAIN], None, None, "top_k"),
        ([ScoredPrompt(token_ids=[1, 2], candidate_ids=np.array([1]))], None, None, "candidate"),
    ],
)
def test_supports_that_contradict_themselves_are_refused_before_the_call(
    prompts, top_k, sampled, field
) -> None:
    with pytest.raises(ValueError, match=field):
        encode_scoring(prompts, top_k, None, sampled)


def test_settings_of_an_objective_travel_only_when_given() -> None:
    names = ("jsd_beta", "clip_low", "clip_high")
    absent = encode_batch(BatchSettings(), 1, None)
    assert not any(absent.HasField(name) for name in names)
    given = encode_batch(BatchSettings(jsd_beta=0.0, clip_low=0.0, clip_high=0.0), 1, None)
    assert all(given.HasField(name) for name in names)


def test_advantages_and_old_log_probs_travel_with_their_shape() -> None:
    ids = np.array([[1, 2], [3, 4]])
    example = TokenExample(
        input_tokens=[1, 2],
        target_offset=0,
        token_ids=ids,
        advantages=ids * 0.5,
        old_log_probs=-ids.astype(float),
    )
    message = encode_example(example, 0).token_targets
    assert not message.HasField("weights")
    assert list(message.advantages.shape) == list(message.old_log_probs.shape) == [2, 2]
    assert list(message.old_log_probs.values) == [-1, -2, -3, -4]
