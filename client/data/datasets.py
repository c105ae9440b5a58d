"""Questions with demonstrated answers, from JSON Lines files."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.errors import DatasetError

_FIELDS = ("question", "demonstration")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and how it should be answered."""

    question: str
    """What the student sees."""

    demonstration: str
    """The answer, in the format to learn."""


def load_questions(path: Path) -> list[Question]:
    """Read a file with one JSON object of `question` and `demonstration` per line.

    Empty lines are skipped.

    Raises:
        DatasetError: no such file, no question, a line that is no such object, an empty text, or a
            question that occurs twice; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8: {error.reason}") from None
    first_lines: dict[str, int] = {}
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _parse_line(line, f"{path}:{number}")
        earlier = first_lines.setdefault(question.question, number)
        if earlier != number:
            raise DatasetError(f"{path}:{number}: repeats the question of line {earlier}")
        questions.append(question)
    if not questions:
        raise DatasetError(f"{path}: has no questions")
    return questions


def _parse_line(line: str, place: str) -> Question:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{place}: is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise DatasetError(f"{place}: must be a JSON object, got {type(entry).__name__}")
    for name in _FIELDS:
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise DatasetError(f"{place}: {name} must be a text, got {entry.get(name)!r}")
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise DatasetError(f"{place}: unknown field {unknown[0]}")
    return Question(question=entry["question"], demonstration=entry["demonstration"])


def check_disjoint(training: Iterable[Question], heldout: Iterable[Question]) -> None:
    """Refuse held-out questions that are trained on.

    Upper and lower case, and spaces and punctuation at the ends, make no difference.

    Raises:
        DatasetError: names the question.
    """
    trained = {_normal(question.question) for question in training}
    for question in heldout:
        if _normal(question.question) in trained:
            raise DatasetError(f"held-out question is in the training set: {question.question}")


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" ?!.")


def student_messages(question: Question) -> list[dict[str, str]]:
    """The chat that the student answers: the question alone."""
    return [{"role": "user", "content": question.question}]


def teacher_messages(question: Question, shown: Sequence[Question]) -> list[dict[str, str]]:
    """The chat with the privileged context, ending in the same question.

    The earlier turns are the `shown` questions with their demonstrated answers and the question
    itself with its own. A small model follows earlier turns of a chat, but not a demonstration that
    is pasted into the user's turn.
    """
    messages = []
    for earlier in (*shown, question):
        messages.append({"role": "user", "content": earlier.question})
        messages.append({"role": "assistant", "content": earlier.demonstration})
    messages.append({"role": "user", "content": question.question})
    return messages
