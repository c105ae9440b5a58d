"""The parts of a client stream: their order, their number, and what identifies them."""

import numpy as np
import pytest

from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.tensors import encode_int32
from distill.v1 import scoring_pb2, training_pb2
from distill.v1 import student_service_pb2 as pb
from student_service.edge.batch_stream import BatchReader
from student_service.edge.teacher_pool import TeacherPool
from tests.support.training_messages import (
    distribution_example,
    forward_backward_parts,
    make_chunks,
    token_example,
)

VOCAB = 40
LIMITS = RequestLimits(max_sequence_tokens=64, max_top_k=8)


@pytest.fixture
def teachers():
    pool = TeacherPool({"main": "127.0.0.1:1"}, tokenizer_fingerprint="x")
    yield pool
    pool.close()


def read(teachers, examples, chunks=(), *, limits=LIMITS, **batch):
    batch = {"objective": training_pb2.OBJECTIVE_TAIL_BUCKET} | batch
    reader = BatchReader(forward_backward_parts(examples, chunks, **batch), limits, VOCAB)
    return reader.batch(reader.header().batch, teachers)


def test_stream_must_start_with_its_header():
    for parts in ([], [pb.ForwardBackwardRequest(example=token_example())]):
        with pytest.raises(InvalidFieldError, match="first message must be the header"):
            BatchReader(iter(parts), LIMITS, VOCAB).header()


def test_bytes_of_all_messages_together_are_limited(teachers):
    limits = RequestLimits(max_sequence_tokens=64, max_top_k=8, max_request_bytes=500)
    with pytest.raises(LimitExceededError, match="at most 500"):
        read(teachers, [distribution_example()], make_chunks()[0], limits=limits)


def test_digest_knows_the_content_and_not_the_order_of_chunks(teachers):
    chunks = make_chunks(cuts=(4, 8))[0]
    examples = [distribution_example(), distribution_example(prompt_offset=4)]
    digest = read(teachers, examples, chunks).digest
    assert read(teachers, examples, chunks[::-1]).digest == digest
    assert read(teachers, examples[::-1], chunks).digest != digest
    assert read(teachers, examples, chunks[:2]).digest != digest
    assert read(teachers, examples, chunks, temperature=2.0).digest != digest


def pulled(score_from=3, length=12, teacher="main"):
    prompt = scoring_pb2.ScoredPrompt(
        token_ids=encode_int32(np.arange(length)), score_from=score_from
    )
    scoring = scoring_pb2.Scoring(prompts=[prompt], top_k=4)
    return training_pb2.PulledScoring(teacher=teacher, scoring=scoring)


def test_rows_that_the_pull_will_not_return_are_refused_before_it(teachers):
    received = read(teachers, [distribution_example(prompt_offset=8)], pull=pulled())
    assert received.chunks == ()
    for offset in (2, 9):
        with pytest.raises(InvalidFieldError, match=r"asks for \[3, 12\)"):
            read(teachers, [distribution_example(prompt_offset=offset)], pull=pulled())
    with pytest.raises(InvalidFieldError, match=r"prompt_index: must be in \[0, 1\)"):
        read(teachers, [distribution_example(prompt_index=1)], pull=pulled())


def test_chunks_beside_a_pull_are_refused(teachers):
    with pytest.raises(InvalidFieldError, match="names a teacher"):
        read(teachers, [distribution_example()], make_chunks()[0], pull=pulled())


def test_pulled_support_that_the_objective_cannot_use_is_refused_before_the_pull(teachers):
    sampled = pulled()
    sampled.scoring.sampled.SetInParent()
    example = distribution_example(prompt_offset=8)
    assert read(teachers, [example], pull=sampled, objective=training_pb2.OBJECTIVE_SAMPLED)
    with pytest.raises(InvalidFieldError, match=r"support: must not be sampled .* tail_bucket"):
        read(teachers, [example], pull=sampled)
    with pytest.raises(InvalidFieldError, match=r"support: must be sampled .*, got top_k"):
        read(teachers, [example], pull=pulled(), objective=training_pb2.OBJECTIVE_SAMPLED)
    candidates = pulled()
    candidates.scoring.candidates.SetInParent()
    assert read(teachers, [example], pull=candidates)
