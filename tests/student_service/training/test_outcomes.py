"""What is reported of a batch, from given rows."""

import numpy as np
import pytest

from distill.ops.objectives import OBJECTIVES
from student_service.training.outcomes import RowOutcomes, summarize
from tests.student_service.batches import batch_of, distribution_example

LOG_HALF, LOG_TENTH = np.log([0.5, 0.1]).astype(np.float32)


def metrics_of(ids, values, log_q, *, objective="tail_bucket", student_top=0, **fields):
    """Metrics of one example of N rows whose student is given; `fields` are those of its `Rows`."""
    ids = np.array(ids, np.int32)
    row_count = len(ids)
    example = distribution_example(
        np.random.default_rng(0),
        length=row_count,
        offset=0,
        row_count=row_count,
        vocab_size=10,
        token_ids=ids,
        **{
            "log_probs" if OBJECTIVES[objective].needs_distribution else "draw_weights": np.float32(
                values
            )
        },
        **fields,
    )
    nothing = np.zeros(row_count, np.float32)
    outcome = RowOutcomes(
        log_probs=np.array(log_q, np.float32),
        losses=nothing,
        student_entropies=nothing,
        top_token_ids=np.full(row_count, student_top, np.int32),
        support_overlaps=nothing,
        tail_bucket_kls=nothing,
    )
    sources = [((0, np.arange(row_count, dtype=np.int32)),)]
    return summarize(batch_of([example], objective), sources, [outcome]).metrics


@pytest.mark.parametrize("objective", ["sampled", "cross_entropy"])
def test_a_token_of_the_support_has_its_probability_once_and_an_unused_slot_none(objective):
    metrics = metrics_of(
        [[3, 7, 3, 3], [1, 2, 4, 4], [9, 9, 1, 1]],
        [[0.5, 0.25, 0.25, 0], [0.25, 0.5, 0.25, 0], [0, 1, 0, 0]],
        [[LOG_HALF, LOG_TENTH, LOG_HALF, LOG_HALF], [LOG_TENTH] * 4, [LOG_HALF] * 4],
        objective=objective,
    )
    assert metrics["student_support_mass"] == pytest.approx((0.6 + 0.3 + 0.5) / 3)


def agreement(most_probable, log_p, tail):
    """Of a row whose support holds token 1 at best, which is not the student's choice."""
    return metrics_of(
        [[1, 2]],
        [log_p],
        [[LOG_TENTH, LOG_TENTH]],
        most_probable=most_probable,
        tail_log_probs=np.log([tail]).astype(np.float32),
    ).get("top_1_agreement")


def test_agreement_is_left_out_where_the_support_may_lack_the_teachers_choice():
    assert agreement(False, [LOG_TENTH, LOG_TENTH], 0.8) is None


def test_agreement_is_measured_where_the_support_holds_the_teachers_choice():
    """As it is that of the most probable tokens, or has one above all others together."""
    assert agreement(True, [LOG_TENTH, LOG_TENTH], 0.8) == 0.0
    assert agreement(False, [LOG_HALF, LOG_TENTH], 0.4) == 0.0


def metrics_without(*absent, most_probable=True, objective="renormalized"):
    return metrics_of(
        [[1, 2]],
        [[LOG_HALF, LOG_TENTH]],
        [[LOG_TENTH, LOG_TENTH]],
        objective=objective,
        most_probable=most_probable,
        **dict.fromkeys(absent),
    ).keys()


def test_metrics_that_need_what_the_chunks_lack_are_left_out_and_no_others():
    known = metrics_without()
    assert {"teacher_entropy", "tail_bucket_kl", "top_1_agreement"} <= known
    assert metrics_without("prompt_log_probs") == known
    assert metrics_without("entropies") == known - {"teacher_entropy"}
    assert metrics_without("entropies", objective="sampled") == metrics_without(
        objective="sampled"
    ) - {"teacher_entropy"}
    assert metrics_without("tail_log_probs") == known - {"tail_bucket_kl"}
    # Here it was the tail that showed where the teacher's choice is.
    assert "top_1_agreement" in metrics_without(most_probable=False)
    left = metrics_without("tail_log_probs", most_probable=False)
    assert left == known - {"tail_bucket_kl", "top_1_agreement"}


def test_a_metric_is_left_out_where_one_example_lacks_its_field():
    examples = [
        distribution_example(
            np.random.default_rng(0), length=3, offset=0, row_count=2, vocab_size=10, **fields
        )
        for fields in ({}, {"entropies": None})
    ]
    rows = np.zeros(4, np.float32)
    outcome = RowOutcomes(
        np.zeros((4, 5), np.float32), rows, rows, np.zeros(4, np.int32), rows, rows
    )
    sources = [tuple((index, np.arange(2, dtype=np.int32)) for index in range(2))]
    metrics = summarize(batch_of(examples), sources, [outcome]).metrics
    assert "teacher_entropy" not in metrics
    assert "tail_bucket_kl" in metrics
