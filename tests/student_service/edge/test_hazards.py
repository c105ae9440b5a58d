"""Every hazard of a training request is refused before compute, by field."""

import re

import pytest

from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from student_service.edge.batch_stream import BatchReader
from student_service.edge.distributions import with_targets
from student_service.edge.teacher_pool import TeacherPool
from student_service.training.batch import TrainingBatch
from tests.support.hazards import GOOD_REQUESTS, HAZARDS, MAX_TOP_K, VOCAB, Request
from tests.support.tiny_models import tiny_config
from tests.support.training_messages import forward_backward_parts

PATH = re.compile(r"part|end\.chunk_count|header(\.\w+)+|(examples|chunks)\[\d+\](\.\w+)*")
"""How the contract says that a field of a client stream is named."""

LIMITS = RequestLimits(max_sequence_tokens=16, max_top_k=MAX_TOP_K)


def parse(request: Request) -> TrainingBatch:
    """What a servicer makes of the request before anything is computed."""
    parts = forward_backward_parts(request.examples, request.chunks, **request.batch)
    reader = BatchReader(parts, LIMITS, VOCAB)
    teachers = TeacherPool({}, tokenizer_fingerprint="")
    received = reader.batch(reader.header().batch, teachers)
    # Only a pull needs the context of the call.
    batch, _, _ = with_targets(received, None, teachers, LIMITS, VOCAB)
    return batch


@pytest.mark.parametrize("name", GOOD_REQUESTS)
def test_requests_that_hazards_change_in_one_place_are_good(name: str) -> None:
    assert len(parse(GOOD_REQUESTS[name]).examples) == 1


def test_the_vocabulary_of_hazards_is_that_of_the_tiny_model() -> None:
    assert tiny_config().vocab_size == VOCAB


@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_is_refused_with_its_field_and_value(name: str) -> None:
    hazard = HAZARDS[name]
    with pytest.raises(InvalidFieldError) as caught:
        parse(hazard.request)
    assert caught.value.field == hazard.field
    assert PATH.fullmatch(hazard.field)
    assert hazard.problem in caught.value.problem
