"""The questions that ship with the demo."""

from pathlib import Path

import pytest

from client.data.datasets import check_disjoint, load_questions
from client.recipes.evaluation import ANSWER_FORMAT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINING = EXAMPLES / "questions_train.jsonl"
HELDOUT = EXAMPLES / "questions_heldout.jsonl"


def test_there_are_enough_and_none_is_in_both() -> None:
    training, heldout = load_questions(TRAINING), load_questions(HELDOUT)
    assert len(training) >= 64
    assert len(heldout) >= 24
    check_disjoint(training, heldout)


@pytest.mark.parametrize("path", [TRAINING, HELDOUT], ids=["training", "heldout"])
def test_every_demonstration_has_the_format_to_learn(path: Path) -> None:
    for question in load_questions(path):
        assert ANSWER_FORMAT.fullmatch(question.demonstration), question
        assert question.question.endswith("?"), question
