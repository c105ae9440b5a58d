"""Does an answer have the demonstrated format?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from client.data.datasets import Question
from client.results import Sample

ANSWER_FORMAT = re.compile(r"Answer: [^\n.]+\.")
"""One line of one sentence, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """How a model answers a list of questions."""

    success: float
    """Share of answers in the demonstrated format, in [0, 1]."""

    exact: float
    """Share of answers that are the demonstration letter by letter, in [0, 1]."""

    answers: tuple[str, ...]
    """The answers, in the order of the questions."""


def score_answers(questions: Sequence[Question], completions: Sequence[Sample]) -> AnswerScores:
    """Compare answers with their demonstrations.

    An answer succeeds when all of it is `Answer: X.` with X in one line and without a full stop,
    and the model ended it by itself. Whether X is right makes no difference to `success`; `exact`
    asks for that.

    Raises:
        ValueError: another number of answers than of questions, or of none at all.
    """
    if not questions or len(questions) != len(completions):
        raise ValueError(
            f"completions: must be one per question ({len(questions)}), got {len(completions)}"
        )
    ended = [completion.stop_reason == "stop" for completion in completions]
    answers = [completion.text for completion in completions]
    successes = [
        stopped and ANSWER_FORMAT.fullmatch(answer) is not None
        for stopped, answer in zip(ended, answers, strict=True)
    ]
    exact = [
        stopped and answer == question.demonstration
        for stopped, answer, question in zip(ended, answers, questions, strict=True)
    ]
    return AnswerScores(
        success=sum(successes) / len(questions),
        exact=sum(exact) / len(questions),
        answers=tuple(answers),
    )
