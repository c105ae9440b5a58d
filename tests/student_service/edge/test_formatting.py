"""What a result weighs on the wire is known before it is computed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import LimitExceededError
from distill.limits import MAX_MESSAGE_BYTES
from distill.models.export_file import EXPORT_PIECE_BYTES, text_file
from distill.v1 import training_pb2
from student_service.edge import formatting
from student_service.edge.formatting import check_result_size, format_batch_result, format_file
from student_service.training.batch import BatchOutcome, ExampleOutcome, LossSettings, TrainingBatch
from tests.student_service.batches import token_example

SECONDS = {"targets": 1.0, "queue": 1.0, "compute": 1.0}


def batch_of(shapes, hard=False):
    rng = np.random.default_rng(0)
    examples = tuple(
        token_example(
            rng,
            length=rows,
            offset=0,
            row_count=rows,
            vocab_size=50,
            support_size=support,
            hard=hard,
        )
        for rows, support in shapes
    )
    return TrainingBatch(loss=LossSettings(objective="tail_bucket"), examples=examples)


def encoded_bytes(shapes, header, hard):
    outcome = BatchOutcome(
        loss=1.0,
        row_count=1 << 40,
        token_count=1 << 40,
        metrics={},
        examples=tuple(
            ExampleOutcome(
                loss=1.0,
                log_probs=np.ones(rows if hard else (rows, support)),
                row_losses=np.ones(rows),
            )
            for rows, support in shapes
        ),
    )
    result = format_batch_result(outcome, header, pulled_bytes=1 << 40, seconds=SECONDS)
    return result.ByteSize()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_results_are_never_larger_than_was_foreseen(shapes, log_probs, row_losses, hard):
    header = training_pb2.Batch(return_log_probs=log_probs, return_row_losses=row_losses)
    if hard:
        shapes = [(rows, 1) for rows, _ in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formatting, "MAX_MESSAGE_BYTES", 0)
        with pytest.raises(LimitExceededError) as caught:
            check_result_size(batch_of(shapes, hard), header)
    actual = encoded_bytes(shapes, header, hard)
    assert actual <= caught.value.value <= actual + 4096 + 128 * len(shapes)


def test_results_that_fit_no_message_are_refused_by_the_option_that_asks_for_them():
    rows = MAX_MESSAGE_BYTES // (4 * 1024)
    check_result_size(batch_of([(rows // 2, 1024)]), training_pb2.Batch(return_log_probs=True))
    check_result_size(batch_of([(rows, 1024)]), training_pb2.Batch(return_row_losses=True))
    with pytest.raises(LimitExceededError, match=r"return_log_probs.*67108864 bytes") as caught:
        check_result_size(batch_of([(rows, 1024)]), training_pb2.Batch(return_log_probs=True))
    assert caught.value.limit == MAX_MESSAGE_BYTES < caught.value.value


@pytest.mark.parametrize("size", [0, 1, EXPORT_PIECE_BYTES, EXPORT_PIECE_BYTES + 1])
def test_pieces_of_a_file_come_in_order_and_leave_no_gap(size):
    text = "ab" * (size // 2) + "c" * (size % 2)
    pieces = list(format_file(text_file("name.txt", text)))
    assert len(pieces) == max(1, -(-size // EXPORT_PIECE_BYTES))
    assert {(piece.file_name, piece.file_bytes) for piece in pieces} == {("name.txt", size)}
    assert [piece.byte_offset for piece in pieces] == [
        index * EXPORT_PIECE_BYTES for index in range(len(pieces))
    ]
    assert b"".join(piece.data for piece in pieces).decode() == text
