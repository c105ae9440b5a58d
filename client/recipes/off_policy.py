"""Off-policy distillation: the student learns the teacher's distributions on a given corpus."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from client.recipes.batches import (
    AlignedSequence,
    TeacherLink,
    align,
    check_teacher,
    shuffled_batches,
)
from client.recipes.leftovers import drop_leftovers
from client.recipes.metrics import StepMetrics, step_metrics
from client.recipes.schedule import Schedule
from client.recipes.training_step import train_step
from client.run import StudentRun
from client.settings import AdamW, Tokens, batch_settings, check_distribution_objective
from distill.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class OffPolicySettings:
    """How to train."""

    step_count: int = 100
    """Most optimizer steps."""

    sequences_per_step: int = 8
    """Sequences in a step."""

    top_k: int = 20
    """K, the support size."""

    objective: str = "tail_bucket"
    """What is minimised; any of the distribution objectives."""

    temperature: float | None = None
    """Divides the logits of both sides. None: 1."""

    adamw: AdamW = field(default_factory=lambda: AdamW(learning_rate=1e-4, max_gradient_norm=1.0))
    """Optimizer settings of every step."""

    warmup_steps: int = 0
    """Steps in which the learning rate rises to its full value."""

    final_learning_rate_factor: float = 1.0
    """After that it falls linearly to this share in the last step."""

    max_seconds: float | None = None
    """The training ends with the step in which this time of training is over, and the learning rate
    has fallen by then. None: the training ends with its last step."""

    seed: int = 0
    """Of the order of the sequences."""

    def __post_init__(self) -> None:
        check_distribution_objective(self.objective)


def train_off_policy(
    *,
    run: StudentRun,
    teacher: TeacherLink,
    corpus: Sequence[Tokens],
    settings: OffPolicySettings,
    on_step: Callable[[StepMetrics], None] = lambda _: None,
) -> list[StepMetrics]:
    """Train a run on the teacher's distributions over every token of the corpus but the first.

    A gradient that an earlier script left in the run is dropped, with a warning.

    Args:
        run: what is trained.
        teacher: which teacher, and how its distributions travel.
        corpus: token ids of each sequence, two or more; `tokenize_corpus` makes them from texts.
        settings: how to train.
        on_step: called after each step.

    Returns:
        The metrics of all steps.

    Raises:
        MismatchedPairError: the teacher has another tokenizer.
        ValueError: an empty corpus, or a sequence without a token to predict.
    """
    sequences = list(_sequences(corpus))
    check_teacher(teacher, run)
    drop_leftovers(run)
    schedule = Schedule(
        step_count=settings.step_count,
        warmup_steps=settings.warmup_steps,
        final_factor=settings.final_learning_rate_factor,
    )
    batches = shuffled_batches(len(sequences), settings.sequences_per_step, settings.seed)
    minimised = batch_settings(settings.objective, temperature=settings.temperature)
    history: list[StepMetrics] = []
    time_share = 0.0
    for index, chosen in zip(range(settings.step_count), batches, strict=False):
        started = time.monotonic()
        batch = align([sequences[position] for position in chosen])
        transfer, step = train_step(
            run=run,
            teacher=teacher,
            batch=batch,
            minimised=minimised,
            top_k=settings.top_k,
            temperature=settings.temperature,
            adamw=schedule.adamw(settings.adamw, index, time_share=time_share),
        )
        metrics = step_metrics(
            transfer,
            step,
            teacher_token_count=batch.teacher_token_count,
            sampled_token_count=0,
            sampling_seconds=0.0,
            step_seconds=time.monotonic() - started,
        )
        history.append(metrics)
        on_step(metrics)
        if settings.max_seconds is not None:
            spent_seconds = sum(one.step_seconds for one in history)
            if spent_seconds >= settings.max_seconds:
                break
            time_share = spent_seconds / settings.max_seconds
    return history


def tokenize_corpus(
    tokenizer: TextTokenizer, texts: Sequence[str], *, max_tokens: int
) -> list[list[int]]:
    """Token ids of texts, longer ones cut into sequences; a piece of a single token is dropped."""
    pieces = []
    for text in texts:
        token_ids = tokenizer.encode(text, add_special_tokens=True)
        pieces += [
            token_ids[start : start + max_tokens] for start in range(0, len(token_ids), max_tokens)
        ]
    return [piece for piece in pieces if len(piece) > 1]


def _sequences(corpus: Sequence[Tokens]) -> Iterator[AlignedSequence]:
    if not corpus:
        raise ValueError("corpus: must not be empty")
    for index, tokens in enumerate(corpus):
        if len(tokens) < 2:
            raise ValueError(f"corpus[{index}]: must have 2 or more tokens, got {len(tokens)}")
        # Both sides read the same text, so every token is predicted from the same prefix.
        yield AlignedSequence(
            student_prompt=tokens[:1], teacher_prompt=tokens[:1], completion=tokens[1:]
        )
