"""What a pulled scoring request asks for, whichever of its fields are spelled out."""

import numpy as np
import pytest

from distill.tensors import encode_int32
from distill.v1 import scoring_pb2
from student_service.edge.digests import value_digest
from student_service.edge.pulled_scoring import understood_scoring

PROMPT = encode_int32(np.arange(5))
PLAIN = scoring_pb2.Scoring(prompts=[{"token_ids": PROMPT}], top_k=4)
SAMPLED = scoring_pb2.Scoring(prompts=[{"token_ids": PROMPT}], top_k=4, sampled={})


def digest(scoring):
    return value_digest(understood_scoring(scoring))


def changed(message, path):
    """A copy with another value in a field; a path goes through the first entry of a list."""
    copy = type(message)()
    copy.CopyFrom(message)
    owner = copy
    *parents, last = path
    for name in parents:
        owner = getattr(owner, name)
        if owner is not None and hasattr(owner, "add"):
            owner = owner[0]
    field = owner.DESCRIPTOR.fields_by_name[last]
    if field.message_type is not None:
        getattr(owner, last).SetInParent()
    elif field.is_repeated:
        getattr(owner, last).append(1)
    else:
        setattr(owner, last, getattr(owner, last) + 3)
    return copy


def fields_of(descriptor, path=()):
    """The path of every field of a message that is no list of messages, at every depth."""
    for field in descriptor.fields:
        here = (*path, field.name)
        if not (field.is_repeated and field.message_type is not None):
            yield here
        if field.message_type is not None:
            yield from fields_of(field.message_type, here)


PATHS = list(fields_of(scoring_pb2.Scoring.DESCRIPTOR))


def test_fields_are_those_of_the_contract_down_to_the_values_of_tensors():
    assert ("prompts", "token_ids", "values") in PATHS
    assert ("sampled", "seed") in PATHS


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_every_field_of_a_scoring_request_has_a_part_in_its_digest(path):
    # A message that is there and empty counts where its presence means something.
    empty = {("prompts", "token_ids"), ("prompts", "candidate_ids")}
    for base in (PLAIN, SAMPLED):
        is_same = path in empty or (base is SAMPLED and path == ("sampled",))
        assert (digest(changed(base, path)) == digest(base)) == is_same


def test_an_order_of_prompts_is_a_part_of_the_digest():
    one, two = {"token_ids": PROMPT}, {"token_ids": encode_int32(np.arange(6))}
    assert digest(scoring_pb2.Scoring(prompts=[one, two])) != digest(
        scoring_pb2.Scoring(prompts=[two, one])
    )


def test_a_default_that_is_spelled_out_is_no_other_request():
    spelled = scoring_pb2.Scoring(
        prompts=[{"token_ids": PROMPT, "score_from": 1}], top_k=4, temperature=1.0
    )
    assert digest(spelled) == digest(PLAIN)
    spelled.sampled.seed = 0
    spelled.sampled.exact_count = 0
    assert digest(spelled) == digest(SAMPLED)
