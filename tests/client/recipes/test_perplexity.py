"""Perplexity over the wire is that of the fakes' distribution."""

import math

import numpy as np
import pytest

from client.recipes.perplexity import Prediction, share_won_back, teacher_prediction
from client.teacher import TeacherClient
from tests.client.fake_model import row_log_probs


def prediction(nats: float) -> Prediction:
    return Prediction(nats_per_token=nats, token_count=10)


def test_every_token_but_the_first_counts_once(teacher: TeacherClient) -> None:
    texts = [[5, 6, 7, 8, 9], [3, 4]]
    expected = [
        row_log_probs(np.array(text[:row]))[text[row]]
        for text in texts
        for row in range(1, len(text))
    ]
    measured = teacher_prediction(teacher, texts)
    assert measured.token_count == len(expected) == 5
    assert measured.nats_per_token == pytest.approx(-np.mean(expected), rel=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(-np.mean(expected)), rel=1e-4)


def test_the_share_won_back_is_of_what_was_lost() -> None:
    teacher, before = prediction(2.0), prediction(6.0)
    assert share_won_back(teacher=teacher, before=before, after=prediction(3.0)) == 0.75
    assert share_won_back(teacher=teacher, before=before, after=before) == 0
    assert share_won_back(teacher=teacher, before=teacher, after=before) is None
