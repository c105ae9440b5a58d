"""Questions with demonstrated answers, as prompts of a teacher that sees the demonstrations."""

import random
from collections.abc import Sequence

from client.data.datasets import Question, student_messages, teacher_messages
from client.recipes.sdft import PrivilegedPrompt
from distill.tokenizer import TextTokenizer

SHOWN_QUESTIONS = 2
"""Other questions whose demonstrations the teacher sees."""


def privileged_prompts(
    tokenizer: TextTokenizer,
    questions: Sequence[Question],
    training: Sequence[Question],
    shown: random.Random,
) -> list[PrivilegedPrompt]:
    """Both sides' prompts of each question.

    Args:
        tokenizer: of both sides.
        questions: what is asked.
        training: where the shown questions come from; more than SHOWN_QUESTIONS.
        shown: chooses them, never the question itself.
    """
    prompts = []
    for question in questions:
        others = [other for other in training if other is not question]
        context = teacher_messages(question, shown.sample(others, SHOWN_QUESTIONS))
        prompts.append(
            PrivilegedPrompt(
                student_prompt=tokenizer.encode_chat(student_messages(question)),
                teacher_prompt=tokenizer.encode_chat(context),
            )
        )
    return prompts
