"""The parts of a client stream: their order, their number, and what identifies them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import IncompleteStreamError, InvalidFieldError
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
    policy_example,
    token_example,
)

VOCAB = 40
LIMITS = RequestLimits(max_sequence_tokens=64, max_top_k=8)


@pytest.fixture
def teachers():
    pool = TeacherPool(dict.fromkeys(("main", "other"), "127.0.0.1:1"), tokenizer_fingerprint="x")
    yield pool
    pool.close()


def read(teachers, examples, chunks=(), *, limits=LIMITS, **batch):
    batch = {"objective": training_pb2.OBJECTIVE_TAIL_BUCKET} | batch
    reader = BatchReader(forward_backward_parts(examples, chunks, **batch), limits, VOCAB)
    return reader.batch(reader.header().batch, teachers)


def read_parts(teachers, parts):
    reader = BatchReader(iter(parts), LIMITS, VOCAB)
    return reader.batch(reader.header().batch, teachers)


def test_stream_must_start_with_its_header():
    with pytest.raises(InvalidFieldError, match="first message must be the header, got example"):
        BatchReader(
            iter([pb.ForwardBackwardRequest(example=token_example())]), LIMITS, VOCAB
        ).header()


KINDS = {
    "tokens": {"objective": training_pb2.OBJECTIVE_CROSS_ENTROPY},
    "relayed": {"objective": training_pb2.OBJECTIVE_TAIL_BUCKET},
}


def whole_stream(kind, example_count=1, cuts=()):
    if kind == "tokens":
        examples, chunks = [token_example()] * example_count, []
    else:
        examples, chunks = [distribution_example()] * example_count, make_chunks(cuts=cuts)[0]
    return list(forward_backward_parts(examples, chunks, **KINDS[kind]))


@given(
    kind=st.sampled_from(list(KINDS)),
    example_count=st.integers(1, 4),
    cuts=st.sets(st.integers(1, 11), max_size=4).map(sorted),
)
def test_stream_that_is_cut_anywhere_before_its_end_part_is_never_taken_for_whole(
    kind, example_count, cuts
):
    pool = TeacherPool({}, tokenizer_fingerprint="")
    parts = whole_stream(kind, example_count, cuts)
    assert len(read_parts(pool, parts).examples) == example_count
    for cut in range(len(parts)):
        with pytest.raises(IncompleteStreamError) as caught:
            read_parts(pool, parts[:cut])
        assert caught.value.field == "end"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (scoring_pb2.TopKChunk(), "token_ids.shape"),
        (make_chunks(prompt_index=1)[0][0], "prompt_index"),
        (make_chunks()[0][0], "first_row"),
    ],
    ids=["empty", "of a prompt that no example names", "of rows that came before"],
)
def test_wrong_chunk_is_refused_before_the_next_part_is_read(teachers, wrong, field):
    def parts():
        *before, end = forward_backward_parts(
            [distribution_example()], [*make_chunks()[0], wrong], **KINDS["relayed"]
        )
        yield from before
        pytest.fail("read on")
        yield end

    with pytest.raises(InvalidFieldError) as caught:
        read_parts(teachers, parts())
    assert caught.value.field == f"chunks[1].{field}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difference", [-1, 1])
def test_end_that_counts_other_chunks_than_came_is_refused(teachers, kind, difference):
    parts = whole_stream(kind, cuts=(4, 8))
    chunk_count = parts[-1].end.chunk_count
    parts[-1].end.chunk_count += difference
    with pytest.raises(InvalidFieldError, match=f"which is {chunk_count}, got") as caught:
        read_parts(teachers, parts)
    assert caught.value.field == "end.chunk_count"
    # A part that was lost on the way looks the same.
    lost = [part for part in whole_stream("relayed", cuts=(4, 8)) if part.chunk.first_row != 7]
    with pytest.raises(InvalidFieldError, match="which is 2, got 3"):
        read_parts(teachers, lost)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_may_follow_the_end_and_no_example_may_be_missing_before_it(teachers, kind):
    parts = whole_stream(kind, example_count=2)
    for extra in parts:
        with pytest.raises(InvalidFieldError, match="nothing may follow the end"):
            read_parts(teachers, [*parts, extra])
    with pytest.raises(InvalidFieldError, match="says 2 examples, got end after 1") as caught:
        read_parts(teachers, [*parts[:2], parts[-1]])
    assert not isinstance(caught.value, IncompleteStreamError)


def test_pull_is_whole_with_its_last_example_and_may_send_an_end(teachers):
    examples = [distribution_example(prompt_offset=8)] * 2
    objective = training_pb2.OBJECTIVE_TAIL_BUCKET
    *before, end = forward_backward_parts(examples, objective=objective, pull=pulled())
    digests = {read_parts(teachers, parts).digest for parts in (before, [*before, end])}
    assert len(digests) == 1
    for cut in range(len(before)):
        with pytest.raises(IncompleteStreamError):
            read_parts(teachers, before[:cut])
    end.end.chunk_count = 1
    with pytest.raises(InvalidFieldError, match="which is 0, got 1"):
        read_parts(teachers, [*before, end])


def test_message_without_a_part_is_refused_by_name(teachers):
    parts = whole_stream("tokens")
    with pytest.raises(InvalidFieldError, match="follow the 1 examples, got no part"):
        read_parts(teachers, [*parts[:-1], pb.ForwardBackwardRequest()])


@given(cuts=st.sets(st.integers(1, 11), max_size=5).map(sorted), order=st.randoms())
def test_digest_knows_the_rows_of_prompts_and_not_how_chunks_bring_them(cuts, order):
    examples = [distribution_example(), distribution_example(prompt_index=1)]

    def digest(chunks):
        return read(None, examples, chunks).digest

    known = digest(make_chunks()[0] + make_chunks(prompt_index=1)[0])
    chunks = make_chunks(cuts=cuts)[0] + make_chunks(prompt_index=1, cuts=cuts)[0]
    order.shuffle(chunks)
    assert digest(chunks) == known
    assert digest(make_chunks(seed=1)[0] + make_chunks(prompt_index=1)[0]) != known
    assert digest(make_chunks(row_count=11)[0] + make_chunks(prompt_index=1)[0]) != known


def test_digest_knows_examples_settings_and_options(teachers):
    chunks = make_chunks()[0]
    examples = [distribution_example(), distribution_example(prompt_offset=4)]
    others = [
        read(teachers, examples, chunks),
        read(teachers, examples[::-1], chunks),
        read(teachers, examples[:1], chunks),
        read(teachers, [examples[0], distribution_example(row_weights=[1, 2, 1, 1])], chunks),
        read(teachers, examples, chunks, temperature=2.0),
        read(teachers, examples, chunks, reduction=training_pb2.REDUCTION_SEQUENCE_MEAN),
        read(teachers, examples, chunks, objective=training_pb2.OBJECTIVE_RENORMALIZED),
        read(teachers, examples, chunks, return_log_probs=True),
        read(teachers, examples, chunks, return_row_losses=True),
        read(teachers, examples, pull=pulled(support_size=5)),
        read(teachers, examples, pull=pulled()),
        read(teachers, examples, pull=pulled(teacher="other")),
    ]
    assert len({received.digest for received in others}) == len(others)


def test_digest_is_the_same_where_a_default_is_spelled_out(teachers):
    chunks = make_chunks()[0]
    for fields, spelled in [
        ({}, {"temperature": 1.0, "reduction": training_pb2.REDUCTION_SUM}),
        ({"objective": training_pb2.OBJECTIVE_JSD}, {"jsd_beta": 0.5}),
    ]:
        plain = read(teachers, [distribution_example()], chunks, **fields)
        weighted = [distribution_example(row_weights=np.ones(4, np.float32))]
        assert read(teachers, weighted, chunks, **fields, **spelled).digest == plain.digest
    for make, fields, spelled in [
        (token_example, {"objective": training_pb2.OBJECTIVE_CROSS_ENTROPY}, {}),
        (
            policy_example,
            {"objective": training_pb2.OBJECTIVE_PPO},
            {"clip_low": 0.8, "clip_high": 1.2},
        ),
    ]:
        weights = {"weights": np.ones(4)} if make is token_example else {}
        plain = read(teachers, [make()], **fields)
        assert read(teachers, [make(**weights)], **fields, **spelled).digest == plain.digest
    hard, soft = token_example((4,)), token_example((4, 1))
    objective = training_pb2.OBJECTIVE_CROSS_ENTROPY
    digests = {read(teachers, [each], objective=objective).digest for each in (hard, soft)}
    assert len(digests) == 2  # their results have other shapes


def pulled(score_from=3, length=12, teacher="main", support_size=4):
    prompt = scoring_pb2.ScoredPrompt(
        token_ids=encode_int32(np.arange(length)), score_from=score_from
    )
    scoring = scoring_pb2.Scoring(prompts=[prompt], top_k=support_size)
    return training_pb2.PulledScoring(teacher=teacher, scoring=scoring)


def test_rows_that_the_pull_will_not_return_are_refused_before_it(teachers):
    received = read(teachers, [distribution_example(prompt_offset=8)], pull=pulled())
    assert received.prompts == {}
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
