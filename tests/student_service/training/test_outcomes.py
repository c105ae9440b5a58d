"""What is reported of a batch, from given rows."""

import numpy as np
import pytest

from student_service.training.outcomes import RowOutcomes, summarize
from tests.student_service.batches import batch_of, distribution_example

LOG_HALF, LOG_TENTH = np.log([0.5, 0.1]).astype(np.float32)


def metrics_of(ids, values, log_q, *, objective="tail_bucket", student_top=0, **fields):
    """Metrics of one example of N rows whose student is given."""
    ids = np.array(ids, np.int32)
    row_count = len(ids)
    example = distribution_example(
        np.random.default_rng(0),
        length=row_count,
        offset=0,
        row_count=row_count,
        vocab_size=10,
        token_ids=ids,
        **{"log_probs" if objective == "tail_bucket" else "draw_weights": np.float32(values)},
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
