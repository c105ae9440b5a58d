"""How well a model predicts given texts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.run import StudentRun
from client.settings import Tokens
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.rows import ScoredRows


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model makes of the tokens of some texts, each given those before it."""

    nats_per_token: float
    """Mean of -log p of the tokens that are there."""

    token_count: int
    """Tokens that were predicted: all but the first of each text."""

    @property
    def perplexity(self) -> float:
        """exp of the nats per token: as if it chose among so many equally likely tokens."""
        return math.exp(self.nats_per_token)


def teacher_prediction(teacher: TeacherClient, texts: Sequence[Tokens]) -> Prediction:
    """Measure a teacher on texts of two tokens or more."""
    return _prediction(teacher.score(texts, 1))


def student_prediction(
    student: StudentClient, run: StudentRun, texts: Sequence[Tokens]
) -> Prediction:
    """Measure the present weights of a run on texts of two tokens or more."""
    return _prediction(student.under(run.run_id).score(texts, 1))


def share_won_back(*, teacher: Prediction, before: Prediction, after: Prediction) -> float | None:
    """The share of the log-perplexity lost to the teacher that was won back; 1: all of it.

    None where nothing was lost.
    """
    lost = before.nats_per_token - teacher.nats_per_token
    if lost <= 0:
        return None
    return (before.nats_per_token - after.nats_per_token) / lost


def _prediction(scores: Iterable[ScoredRows]) -> Prediction:
    all_scores = list(scores)
    token_count = sum(len(one.prompt_log_probs) for one in all_scores)
    total = -sum(float(one.prompt_log_probs.sum(dtype="float64")) for one in all_scores)
    return Prediction(nats_per_token=total / token_count, token_count=token_count)
