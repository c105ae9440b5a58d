import numpy as np
import pytest

from client.data.datasets import Question
from client.recipes.evaluation import score_answers
from client.results import Sample

PARIS = Question(question="What is the capital of France?", demonstration="Answer: Paris.")


def completion(text: str, stop_reason: str = "stop") -> Sample:
    return Sample(
        prompt_index=0,
        sample_index=0,
        token_ids=np.zeros(1, np.int32),
        log_probs=np.zeros(1, np.float32),
        stop_reason=stop_reason,
        text=text,
    )


@pytest.mark.parametrize(
    ("text", "success", "exact"),
    [
        ("Answer: Paris.", True, True),
        ("Answer: Rome.", True, False),
        ("Answer: The city of Paris.", True, False),
        ("Answer: Paris", False, False),
        ("answer: Paris.", False, False),
        (" Answer: Paris.", False, False),
        ("Answer: Paris.\n", False, False),
        ("Answer: Paris. It is nice.", False, False),
        ("Answer: .", False, False),
        ("The capital is Paris.", False, False),
        ("", False, False),
    ],
)
def test_only_the_whole_answer_in_the_format_succeeds(
    text: str, success: bool, exact: bool
) -> None:
    scores = score_answers([PARIS], [completion(text)])
    assert (scores.success, scores.exact) == (success, exact)


def test_an_answer_that_was_cut_off_does_not_succeed() -> None:
    scores = score_answers([PARIS], [completion("Answer: Paris.", "length")])
    assert (scores.success, scores.exact) == (0, 0)


def test_shares_are_of_all_questions() -> None:
    texts = ["Answer: Paris.", "Answer: Rome.", "Rome", "Paris"]
    scores = score_answers([PARIS] * 4, [completion(text) for text in texts])
    assert (scores.success, scores.exact) == (0.5, 0.25)
    assert list(scores.answers) == texts
    with pytest.raises(ValueError, match="one per question"):
        score_answers([PARIS], [])
