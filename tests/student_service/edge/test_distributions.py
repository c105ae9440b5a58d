"""Chunks into targets: tiling, alignment, and what an objective asks of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import (
    HeldBytesError,
    InvalidFieldError,
    LimitExceededError,
    WrongStateError,
)
from distill.limits import MESSAGE_OVERHEAD_BYTES, RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.rpc.byte_budget import ByteBudget, memory_of_call
from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2, training_pb2
from student_service.edge.batch_stream import ReceivedBatch
from student_service.edge.chunks import ChunkAssembler
from student_service.edge.distributions import attach_targets, with_targets
from student_service.edge.examples import CheckedExample, PromptRows
from student_service.training.batch import LossSettings
from tests.support.training_messages import (
    VOCAB_SIZE,
    changed_chunk,
    make_chunks,
    sampled_chunk,
    without,
)

LIMITS = RequestLimits(max_sequence_tokens=64, max_top_k=8)


def assembler(objective="tail_bucket", *, limits=LIMITS, vocab_size=VOCAB_SIZE):
    return ChunkAssembler(range(6), limits, vocab_size, OBJECTIVES[objective])


def assemble(chunks, objective="tail_bucket", **service):
    taking = assembler(objective, **service)
    for chunk in chunks:
        taking.add(chunk)
    return taking.finish()


def test_repeated_ids_of_a_sampled_support_are_fine_in_slots_of_weight_zero():
    chunk = sampled_chunk()
    prompts = assemble([chunk], "sampled")
    (example,) = attach_targets([example_of(1, 2)], prompts)
    np.testing.assert_array_equal(example.values, [[0.5, 0.25, 0, 0.25], [1, 0, 0, 0]])
    np.testing.assert_array_equal(example.targets.token_ids[1], [5, 5, 5, 5])


def test_rows_are_of_the_most_probable_tokens_only_where_every_chunk_says_so():
    chunks, _ = make_chunks(row_count=12, first_row=1, cuts=(5,))
    chunks[1].most_probable = True
    (example,) = attach_targets([example_of(3, 8)], assemble(chunks))
    assert not example.targets.most_probable
    chunks[0].most_probable = True
    (example,) = attach_targets([example_of(3, 8)], assemble(chunks))
    assert example.targets.most_probable


def test_weights_come_with_the_objective_that_needs_them_and_with_no_other():
    chunks, _ = make_chunks()
    with pytest.raises(
        InvalidFieldError, match=r"weights: must be given for the objective sampled"
    ):
        assemble(chunks, "sampled")
    for name, spec in OBJECTIVES.items():
        if spec.needs_distribution:
            assert assemble(chunks, name)
            with pytest.raises(InvalidFieldError, match=f"weights: .*the objective {name} needs"):
                assemble([sampled_chunk()], name)


def test_a_tail_of_nothing_is_refused_where_the_student_could_reach_it():
    ids = np.arange(4)[None]
    log_probs = np.log(np.full((1, 4), 0.25))
    chunk = changed_chunk(
        token_ids=encode_int32(ids),
        log_probs=encode_floats(log_probs),
        prompt_log_probs=encode_floats(np.zeros(1)),
        tail_log_probs=encode_floats(np.array([-np.inf])),
        entropies=encode_floats(np.ones(1)),
    )
    for name, spec in OBJECTIVES.items():
        if spec.needs_teacher_tail:
            with pytest.raises(
                InvalidFieldError, match=f"tail_log_probs: .* {name} and K below 40"
            ):
                assemble([chunk], name)
            # With K = V there is nothing to reach.
            assert assemble([chunk], name, vocab_size=4)
        elif spec.needs_distribution:
            assert assemble([chunk], name)


def test_a_tail_beside_the_whole_vocabulary_is_refused_before_the_student_pays_for_it():
    for tail in (-40.0, -17.0):
        chunk = changed_chunk(
            token_ids=encode_int32(np.arange(4)[None]),
            log_probs=encode_floats(np.log(np.full((1, 4), 0.25))),
            prompt_log_probs=encode_floats(np.zeros(1)),
            tail_log_probs=encode_floats(np.array([tail])),
            entropies=encode_floats(np.ones(1)),
        )
        for name, spec in OBJECTIVES.items():
            if spec.needs_distribution:
                with pytest.raises(
                    InvalidFieldError, match=rf"tail_log_probs: must be -inf with K = 4.*got {tail}"
                ):
                    assemble([chunk], name, vocab_size=4)


OPTIONAL = ("prompt_log_probs", "tail_log_probs", "entropies")


def test_chunks_need_only_what_their_objective_reads():
    """Ids and log-probs for all, as other servers have them, and a tail for K + 1 outcomes."""
    (chunk,), (ids, values, _, _) = make_chunks()
    assert {name for name, spec in OBJECTIVES.items() if spec.reads_tail} == {
        *("tail_bucket", "reverse_tail_bucket", "jsd")
    }
    for name, spec in OBJECTIVES.items():
        if not spec.needs_distribution:
            continue
        bare = without(chunk, *OPTIONAL)
        if spec.reads_tail:
            with pytest.raises(InvalidFieldError) as caught:
                assemble([bare], name)
            assert caught.value.field == "chunks[0].tail_log_probs"
            assert name in caught.value.problem
            bare.tail_log_probs.CopyFrom(chunk.tail_log_probs)
        rows = assemble([bare], name)[0]
        np.testing.assert_array_equal(rows.token_ids, ids)
        np.testing.assert_array_equal(rows.log_probs, values)
        assert (rows.tail_log_probs is None) == (not spec.reads_tail)
        assert rows.entropies is rows.prompt_log_probs is None
    rows = assemble([without(sampled_chunk(), *OPTIONAL)], "sampled")[0]
    assert rows.arrays().keys() == {"token_ids", "log_probs", "draw_weights"}


def test_prompts_may_differ_in_what_their_chunks_have():
    chunks = [*make_chunks(cuts=(3,))[0], *make_chunks(cuts=(3,), prompt_index=1, seed=1)[0]]
    bare = [*chunks[:2], *(without(chunk, *OPTIONAL) for chunk in chunks[2:])]
    prompts = assemble(bare, "renormalized")
    assert (prompts[0].entropies is None, prompts[1].entropies is None) == (False, True)
    (example,) = attach_targets([example_of(4, 6, prompt_index=1)], prompts)
    assert len(example.targets) == 6
    assert example.targets.tail_log_probs is None


def test_support_without_a_tail_may_have_any_probability_up_to_1_within_the_tolerance():
    for mass, is_right in ((1e-6, True), (0.5, True), (1.009, True), (1.011, False)):
        log_probs = encode_floats(np.log(np.full((2, 4), mass / 4)))
        chunk = changed_chunk(log_probs=log_probs, tail_log_probs=None)
        if is_right:
            assert assemble([chunk], "renormalized")
        else:
            with pytest.raises(InvalidFieldError, match=r"at most 1 within 0.01, got 1.011"):
                assemble([chunk], "renormalized")


def test_entropy_may_be_below_0_by_rounding_alone():
    for entropy, is_right in ((0.0, True), (-9e-4, True), (-1.1e-3, False)):
        chunk = changed_chunk(entropies=encode_floats(np.full(2, entropy)))
        if is_right:
            assert assemble([chunk])
        else:
            with pytest.raises(InvalidFieldError, match=r"entropies: must be .*at least 0, got -0"):
                assemble([chunk])


positive = st.floats(0, 2, width=32)


@given(
    ids=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=2, max_size=2),
    weights=st.lists(st.lists(positive, min_size=4, max_size=4), min_size=2, max_size=2),
)
def test_any_sampled_chunk_is_refused_or_names_each_weighted_token_once(ids, weights):
    normalized = np.array(weights, np.float32)
    normalized /= np.maximum(normalized.sum(-1, keepdims=True), 1e-3)
    chunk = sampled_chunk(ids, normalized)
    # The tail that fits the weighted slots, so that only ids and weights decide.
    named = (normalized > 0).sum(-1)
    chunk.tail_log_probs.CopyFrom(encode_floats(np.log1p(-0.1 * named)))
    try:
        prompt = assemble([chunk], "sampled")[0]
    except InvalidFieldError:
        return
    assert prompt.draw_weights is not None
    for row, row_weights in zip(prompt.token_ids, prompt.draw_weights, strict=True):
        weighted = row[row_weights > 0]
        assert len(weighted) == len(set(weighted.tolist())) > 0


@given(
    cuts=st.sets(st.integers(1, 11)).map(sorted),
    order=st.randoms(use_true_random=False),
)
def test_chunks_join_to_the_rows_they_were_cut_from(cuts, order):
    chunks, (ids, values, tails, entropies) = make_chunks(cuts=cuts)
    others, _ = make_chunks(prompt_index=5, seed=1, cuts=cuts)
    mixed = [*chunks, *others]
    order.shuffle(mixed)
    prompt = assemble(mixed)[0]
    assert prompt.first_row == 3
    np.testing.assert_array_equal(prompt.token_ids, ids)
    np.testing.assert_array_equal(prompt.log_probs, values)
    np.testing.assert_array_equal(prompt.tail_log_probs, tails)
    np.testing.assert_array_equal(prompt.entropies, entropies)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=5))
def test_chunks_are_taken_where_they_tile_in_some_order_and_refused_otherwise(intervals):
    chunks = [make_chunks(row_count=count, first_row=first)[0][0] for first, count in intervals]
    described = [row for first, count in intervals for row in range(first, first + count)]
    first, tiled = min(described), sorted(described)
    if tiled == list(range(first, first + len(tiled))):
        prompt = assemble(chunks)[0]
        assert (prompt.first_row, len(prompt)) == (first, len(tiled))
    else:
        with pytest.raises(InvalidFieldError, match="must be tiled exactly once") as caught:
            assemble(chunks)
        assert caught.value.field in {f"chunks[{index}].first_row" for index in range(len(chunks))}


def test_an_overlap_is_refused_with_the_chunk_that_brings_it():
    chunks = make_chunks(cuts=(4, 8))[0]
    taking = assembler()
    for chunk in (chunks[2], chunks[0]):
        taking.add(chunk)
    for again in (chunks[0], chunks[2], make_chunks(row_count=5)[0][0]):
        with pytest.raises(InvalidFieldError, match=r"chunks\[2\].first_row: .* came in a chunk"):
            taking.add(again)
    # What was refused left nothing behind.
    taking.add(chunks[1])
    assert len(taking.finish()[0]) == 12


def test_chunks_bring_no_more_rows_than_the_prompts_of_a_request_can_have():
    chunks = [*make_chunks(cuts=(6,))[0], *make_chunks(prompt_index=1)[0]]
    assert assemble(chunks, limits=replace(LIMITS, max_request_tokens=24))
    with pytest.raises(LimitExceededError, match=r"chunks\[2\].*at most 23 rows .* got 24"):
        assemble(chunks, limits=replace(LIMITS, max_request_tokens=23))


def example_of(prompt_offset, row_count, prompt_index=0, target_offset=2):
    return CheckedExample(
        input_tokens=np.arange(30, dtype=np.int32),
        target_offset=target_offset,
        targets=PromptRows(
            prompt_index=prompt_index,
            prompt_offset=prompt_offset,
            row_count=row_count,
        ),
        row_weights=np.ones(row_count, np.float32),
    )


def test_example_gets_the_rows_it_names_whatever_the_prefixes():
    chunks, (ids, values, _, _) = make_chunks(row_count=12, first_row=3)
    (example,) = attach_targets([example_of(7, 5, target_offset=20)], assemble(chunks))
    assert example.target_offset == 20
    np.testing.assert_array_equal(example.targets.token_ids, ids[4:9])
    np.testing.assert_array_equal(example.targets.log_probs, values[4:9])


class Teacher:
    """Sends given chunks to whoever pulls."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.sent = 0

    def pull(self, name, scoring, context, *, max_bytes, receive):  # noqa: ARG002
        for chunk in self.chunks:
            self.sent += 1
            receive(chunk, chunk.ByteSize())
        return 1000


def pulled(teacher, prompt_count=2, budget=None):
    """A batch of one example, with rows 3 to 6 of prompt 0, whose targets a teacher has."""
    scoring = scoring_pb2.Scoring(
        prompts=[{"token_ids": encode_int32(np.arange(15)), "score_from": 3}] * prompt_count,
        top_k=4,
    )
    received = ReceivedBatch(
        loss=LossSettings(objective="tail_bucket"),
        batch=training_pb2.Batch(pull={"teacher": "main", "scoring": scoring}),
        examples=(example_of(3, 4),),
        prompts={},
        digest=b"",
    )
    context = object()
    with memory_of_call(context, budget or ByteBudget(1 << 20)):
        return with_targets(received, context, teacher, LIMITS, VOCAB_SIZE)


def test_pulled_chunks_count_against_what_requests_hold_until_the_call_ends():
    chunks = make_chunks(cuts=(5,))[0]
    held = sum(chunk.ByteSize() + MESSAGE_OVERHEAD_BYTES for chunk in chunks)
    budget = ByteBudget(held + 100)
    pulled(Teacher(chunks), budget=budget)
    assert budget.held == 0
    budget.take(101)
    teacher = Teacher(chunks)
    with pytest.raises(HeldBytesError):
        pulled(teacher, budget=budget)
    assert (teacher.sent, budget.held) == (2, 101)


def test_pulled_chunks_become_the_targets_that_relayed_ones_would():
    # The teacher scores every prompt of the request, also one that no example names.
    chunks = [*make_chunks(cuts=(5,))[0], *make_chunks(prompt_index=1)[0]]
    batch, pulled_bytes, _ = pulled(Teacher(chunks))
    (relayed,) = attach_targets([example_of(3, 4)], assemble(chunks))
    (example,) = batch.examples
    for name, array in relayed.targets.arrays().items():
        np.testing.assert_array_equal(getattr(example.targets, name), array)
    assert pulled_bytes == 1000


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (changed_chunk(tail_log_probs=encode_floats(np.full(2, np.nan))), "tail_log_probs: must"),
        (make_chunks(prompt_index=2)[0][0], "prompt_index: no example names prompt 2"),
        (make_chunks(first_row=8)[0][0], "first_row: .* must be tiled exactly once"),
    ],
)
def test_wrong_chunk_of_a_teacher_is_its_own_and_the_first_one_ends_the_pull(wrong, problem):
    """The caller sent no chunk that it could mend."""
    teacher = Teacher([make_chunks()[0][0], wrong, wrong])
    with pytest.raises(WrongStateError, match=rf"^teacher 'main' sent chunks\[1\].{problem}"):
        pulled(teacher)
    assert teacher.sent == 2


def test_gap_between_the_chunks_of_a_teacher_is_its_own():
    first, _, last = make_chunks(cuts=(4, 8))[0]
    with pytest.raises(WrongStateError, match=r"^teacher 'main' sent chunks\[1\].first_row"):
        pulled(Teacher([first, last]))
