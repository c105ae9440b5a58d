from pathlib import Path

import pytest

from client.data.datasets import (
    Question,
    check_disjoint,
    load_questions,
    student_messages,
    teacher_messages,
)
from client.errors import DatasetError

GOOD = '{"question": "What is 1 plus 1?", "demonstration": "Answer: 2."}\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    return path


def test_questions_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    other = '\n{"question": "What is 2 plus 2?", "demonstration": "Answer: 4."}'
    questions = load_questions(write(tmp_path, GOOD + other))
    assert [one.demonstration for one in questions] == ["Answer: 2.", "Answer: 4."]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ('{"question": "x"}', "demonstration must be a text, got None"),
        ('{"question": " ", "demonstration": "y"}', "question must be a text, got ' '"),
        ('{"question": 3, "demonstration": "y"}', "question must be a text, got 3"),
        ('{"question": "x", "demonstration": "y", "answer": "z"}', "unknown field answer"),
        (GOOD.strip(), "repeats the question of line 1"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, f"{GOOD}\n{line}\n")
    with pytest.raises(DatasetError) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}:3: {problem}")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no questions"):
        load_questions(write(tmp_path, "\n\n"))
    with pytest.raises(DatasetError, match="cannot be read"):
        load_questions(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff")
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_questions(tmp_path / "latin.jsonl")


def question(text: str) -> Question:
    return Question(question=text, demonstration="Answer: x.")


def test_heldout_questions_must_be_new() -> None:
    check_disjoint([question("What is A?")], [question("What is B?")])
    with pytest.raises(DatasetError, match="what is  A"):
        check_disjoint([question("What is A?")], [question("what is  A")])


def test_the_teacher_sees_the_demonstration_and_then_the_same_question() -> None:
    asked = Question(question="Q", demonstration="D")
    messages = teacher_messages(asked, [Question(question="Q1", demonstration="D1")])
    assert [(one["role"], one["content"]) for one in messages] == [
        ("user", "Q1"),
        ("assistant", "D1"),
        ("user", "Q"),
        ("assistant", "D"),
        ("user", "Q"),
    ]
    assert student_messages(asked) == [messages[-1]]
