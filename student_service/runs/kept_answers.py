"""The answers that a run keeps for repetitions of its mutations."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.errors import AlreadyAppliedError, SequenceReusedError

ANSWER_BYTES = 16 << 20
"""Bound on the kept answers of a run, the latest not counted. Enough for 64 answers
without log-probs and row losses, which can make a single one as large as a message may be."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What identifies a mutation."""

    writer_epoch: int
    """Epoch the writer was given."""

    sequence_number: int
    """Position in the run's sequence, from 1."""

    digest: bytes
    """Digest of the operation and what it says; tells a repetition from a conflict."""


@dataclass(frozen=True, kw_only=True)
class KeptAnswer:
    """An answer that may be asked for again."""

    digest: bytes
    """Of the mutation that it answers."""

    answer: object
    """As it was given."""

    byte_count: int
    """Its size."""


class KeptAnswers:
    """The latest answers by sequence number. The owner's lock guards it."""

    def __init__(self, *, count: int, byte_limit: int, measure: Callable[[Any], int]) -> None:
        """Args:
        count: most answers.
        byte_limit: bound on their bytes, the latest not counted.
        measure: bytes of an answer.
        """
        self._count = count
        self._byte_limit = byte_limit
        self._measure = measure
        self._answers: OrderedDict[int, KeptAnswer] = OrderedDict()

    def measured(self, ticket: Ticket, answer: object) -> KeptAnswer:
        """What `keep` takes. It looks at the answer, so it needs no lock."""
        return KeptAnswer(digest=ticket.digest, answer=answer, byte_count=self._measure(answer))

    def keep(self, sequence_number: int, kept: KeptAnswer) -> None:
        """Add the latest answer, and forget the oldest until count and bytes leave room for it."""
        total = sum(each.byte_count for each in self._answers.values())
        while len(self._answers) >= self._count or total > self._byte_limit:
            total -= self._answers.popitem(last=False)[1].byte_count
        self._answers[sequence_number] = kept

    def find(self, ticket: Ticket, *, last: int) -> object:
        """The answer of a mutation that was applied.

        Args:
            ticket: of the repetition.
            last: the last applied number, for the error.

        Raises:
            AlreadyAppliedError: its number was used so long ago that nothing of it is kept.
            SequenceReusedError: its number was used for something else.
        """
        number = ticket.sequence_number
        if number not in self._answers:
            raise AlreadyAppliedError(
                f"sequence_number: {number} was used already, and what for is no longer "
                f"known (the last applied is {last})"
            )
        kept = self._answers[number]
        if kept.digest != ticket.digest:
            raise SequenceReusedError(
                f"sequence_number: {number} was already used for other content"
            )
        return kept.answer
