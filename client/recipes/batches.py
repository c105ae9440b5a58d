"""One training step or evaluation on a teacher's distributions, pulled or relayed."""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from client.batch_parts import Chunks
from client.results import BatchResult, check_pair
from client.run import StudentRun
from client.settings import (
    Example,
    PulledScoring,
    ScoredPrompt,
    Tokens,
    distribution_example,
    pulled_targets,
    scored_prompt,
)
from client.teacher import TeacherClient
from distill.v1 import scoring_pb2


class Targets(StrEnum):
    """How the distributions travel from the teacher to the student."""

    PULL = "pull"
    INLINE = "inline"


@dataclass(frozen=True, kw_only=True)
class AlignedSequence:
    """The same completion after the student's and after the teacher's prompt.

    The completion's token j is row `len(teacher_prompt) + j` on the teacher and target row
    `len(student_prompt) + j - 1` on the student.
    """

    student_prompt: Tokens
    """What the student sees before the completion; at least one token."""

    teacher_prompt: Tokens
    """What the teacher sees before the completion; at least one token."""

    completion: Tokens
    """The tokens whose distributions are compared; at least one."""


@dataclass(frozen=True, kw_only=True)
class TeacherLink:
    """A teacher as a recipe uses it."""

    client: TeacherClient
    """Asked when the distributions are relayed."""

    name: str
    """The student's name for it, used when the student pulls."""

    targets: Targets
    """Which of the two ways."""


def check_teacher(link: TeacherLink, run: StudentRun) -> None:
    """Refuse to relay the distributions of a teacher whose tokenizer is not the student's.

    A student that pulls asks its teacher itself, each time: the client may not even reach it.

    Raises:
        MismatchedPairError: names both fingerprints and what to do.
    """
    if link.targets is Targets.INLINE:
        check_pair(link.client.model_info(), run.model_info())


@dataclass(frozen=True, kw_only=True)
class DistributionBatch:
    """A batch of examples and what the teacher has to score for them."""

    examples: tuple[Example, ...]
    """The student's side."""

    prompts: tuple[ScoredPrompt, ...]
    """The teacher's side; example i refers to prompt i."""

    @property
    def teacher_token_count(self) -> int:
        """Tokens that the teacher reads."""
        return sum(len(prompt.token_ids.values) for prompt in self.prompts)


def align(sequences: Sequence[AlignedSequence]) -> DistributionBatch:
    """Line up the rows of both sides.

    Raises:
        ValueError: an empty prompt or completion.
    """
    examples = []
    prompts = []
    for index, sequence in enumerate(sequences):
        student_prompt, teacher_prompt = (
            list(sequence.student_prompt),
            list(sequence.teacher_prompt),
        )
        completion = list(sequence.completion)
        for name, tokens in (
            ("student_prompt", student_prompt),
            ("teacher_prompt", teacher_prompt),
            ("completion", completion),
        ):
            if not tokens:
                raise ValueError(f"sequences[{index}].{name}: must not be empty")
        examples.append(
            distribution_example(
                # The last token is only predicted, never read.
                [*student_prompt, *completion[:-1]],
                target_offset=len(student_prompt) - 1,
                prompt_index=index,
                prompt_offset=len(teacher_prompt),
                row_count=len(completion),
            )
        )
        prompts.append(
            scored_prompt([*teacher_prompt, *completion], score_from=len(teacher_prompt))
        )
    return DistributionBatch(examples=tuple(examples), prompts=tuple(prompts))


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A batch result with what its distributions cost."""

    result: BatchResult
    """What the student answered."""

    target_bytes: int
    """Bytes of distributions, pulled or relayed."""

    scoring_seconds: float
    """Time until the student had the targets."""


class Submit(Protocol):
    """Sends the examples of a batch with these targets and waits for the result."""

    def __call__(
        self, *, pull: PulledScoring | None = None, chunks: Chunks = ()
    ) -> BatchResult: ...


def run_batch(
    link: TeacherLink,
    batch: DistributionBatch,
    *,
    top_k: int,
    temperature: float | None,
    submit: Submit,
) -> Transfer:
    """Submit a batch with its targets on the way that the link says.

    Args:
        link: the teacher.
        batch: from `align`.
        top_k: K.
        temperature: divides the teacher's logits.
        submit: sends the examples with these targets.
    """
    if link.targets is Targets.PULL:
        result = submit(
            pull=pulled_targets(link.name, batch.prompts, top_k, temperature=temperature)
        )
        return Transfer(
            result=result,
            target_bytes=result.totals.pulled_bytes,
            scoring_seconds=result.totals.seconds.targets,
        )
    meter = _Meter(link.client.stream_top_k_messages(batch.prompts, top_k, temperature=temperature))
    result = submit(chunks=meter)
    return Transfer(
        result=result, target_bytes=meter.byte_count, scoring_seconds=meter.waited_seconds
    )


class _Meter:
    """Passes chunks on unread; counts their bytes and the time they took to come."""

    def __init__(self, chunks: Iterable[scoring_pb2.TopKChunk]) -> None:
        self._chunks = iter(chunks)
        self.byte_count = 0
        self.waited_seconds = 0.0

    def __iter__(self) -> Iterator[scoring_pb2.TopKChunk]:
        return self

    def __next__(self) -> scoring_pb2.TopKChunk:
        started = time.monotonic()
        try:
            chunk = next(self._chunks)
        finally:
            self.waited_seconds += time.monotonic() - started
        self.byte_count += chunk.ByteSize()
        return chunk


def shuffled_batches(example_count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices: every index once per epoch, in a new order each time.

    A batch may cross the end of an epoch. The order depends on the seed alone.
    """
    shuffle = random.Random(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            epoch = list(range(example_count))
            shuffle.shuffle(epoch)
            waiting += epoch
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
