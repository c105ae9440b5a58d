"""Self-distillation with a privileged context (SDFT, https://arxiv.org/abs/2601.19897).

In each step the student samples completions of its own prompts, the teacher scores them under a
prompt that shows it more, and the student trains on the teacher's distributions. The paper
minimises the reverse KL; here the teacher is the first argument, as in all our objectives.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from client.recipes.batches import (
    AlignedSequence,
    TeacherLink,
    align,
    check_teacher,
    run_batch,
    shuffled_batches,
)
from client.recipes.leftovers import drop_leftovers
from client.recipes.metrics import StepMetrics, step_metrics
from client.recipes.schedule import Schedule
from client.recipes.training_step import train_step
from client.results import BatchResult, Sample
from client.run import StudentRun
from client.settings import (
    AdamW,
    SamplingParams,
    Tokens,
    batch_settings,
    check_distribution_objective,
)
from client.student import StudentClient


@dataclass(frozen=True, kw_only=True)
class PrivilegedPrompt:
    """One task as both sides see it."""

    student_prompt: Tokens
    """Without the privileged context."""

    teacher_prompt: Tokens
    """With it."""


@dataclass(frozen=True, kw_only=True)
class SdftSettings:
    """How to train."""

    step_count: int = 24
    """Optimizer steps."""

    prompts_per_step: int = 8
    """Prompts in a step; each is sampled once."""

    max_completion_tokens: int = 24
    """Longest completion."""

    sampling_temperature: float = 1.0
    """Temperature of the student's samples."""

    top_k: int = 20
    """K, the support size."""

    objective: str = "tail_bucket"
    """Its fixed point is the teacher's distribution on the support, and no mass beside it."""

    temperature: float | None = None
    """Divides the logits of both sides in the objective. None: 1."""

    adamw: AdamW = field(default_factory=lambda: AdamW(learning_rate=1e-3, max_gradient_norm=1.0))
    """Optimizer settings of the first step."""

    final_learning_rate_factor: float = 0.1
    """The learning rate falls linearly to this share of its first value in the last step: short
    runs end with less of the noise of their last batches."""

    seed: int = 0
    """Of the order of the prompts and of the samples."""

    def __post_init__(self) -> None:
        check_distribution_objective(self.objective)


def train_sdft(
    *,
    student: StudentClient,
    run: StudentRun,
    teacher: TeacherLink,
    prompts: Sequence[PrivilegedPrompt],
    settings: SdftSettings,
    on_step: Callable[[StepMetrics], None] = lambda _: None,
) -> list[StepMetrics]:
    """Train a run on a teacher that sees more.

    A gradient that an earlier script left in the run is dropped, with a warning.

    Args:
        student: the service of the run.
        run: what is trained.
        teacher: which teacher, and how its distributions travel.
        prompts: the tasks.
        settings: how to train.
        on_step: called after each step.

    Returns:
        The metrics of all steps.

    Raises:
        MismatchedPairError: the teacher has another tokenizer.
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("prompts: must not be empty")
    check_teacher(teacher, run)
    drop_leftovers(run)
    batches = shuffled_batches(len(prompts), settings.prompts_per_step, settings.seed)
    schedule = Schedule(
        step_count=settings.step_count, final_factor=settings.final_learning_rate_factor
    )
    minimised = batch_settings(settings.objective, temperature=settings.temperature)
    history = []
    for index, chosen in zip(range(settings.step_count), batches, strict=False):
        started = time.monotonic()
        batch_prompts = [prompts[position] for position in chosen]
        completions = sample_completions(
            student, run, batch_prompts, settings, seed=settings.seed + 1 + index
        )
        sampling_seconds = time.monotonic() - started
        batch = align(pair_completions(batch_prompts, completions))
        transfer, step = train_step(
            run=run,
            teacher=teacher,
            batch=batch,
            minimised=minimised,
            top_k=settings.top_k,
            temperature=settings.temperature,
            adamw=schedule.adamw(settings.adamw, index),
        )
        metrics = step_metrics(
            transfer,
            step,
            teacher_token_count=batch.teacher_token_count,
            sampled_token_count=sum(len(one.token_ids) for one in completions),
            sampling_seconds=sampling_seconds,
            step_seconds=time.monotonic() - started,
        )
        history.append(metrics)
        on_step(metrics)
    return history


def compare_with_teacher(
    *,
    run: StudentRun,
    teacher: TeacherLink,
    prompts: Sequence[PrivilegedPrompt],
    completions: Sequence[Sample],
    settings: SdftSettings,
) -> BatchResult:
    """Compare the run's present weights with the teacher on given completions.

    Nothing is trained. The result's metrics are means over all tokens of all completions.
    """
    check_teacher(teacher, run)
    batch = align(pair_completions(prompts, completions))
    minimised = batch_settings(settings.objective, temperature=settings.temperature)
    transfer = run_batch(
        teacher,
        batch,
        top_k=settings.top_k,
        temperature=settings.temperature,
        submit=partial(run.forward, batch.examples, minimised),
    )
    return transfer.result


def sample_completions(
    student: StudentClient,
    run: StudentRun,
    prompts: Sequence[PrivilegedPrompt],
    settings: SdftSettings,
    *,
    seed: int,
) -> list[Sample]:
    """Sample one completion of each student prompt from the run's present weights."""
    sampling = SamplingParams(
        max_tokens=settings.max_completion_tokens,
        temperature=settings.sampling_temperature,
        seed=seed,
    )
    return student.under(run.run_id).sample([prompt.student_prompt for prompt in prompts], sampling)


def pair_completions(
    prompts: Sequence[PrivilegedPrompt], completions: Sequence[Sample]
) -> list[AlignedSequence]:
    """Put each completion behind both of its prompts."""
    return [
        AlignedSequence(
            student_prompt=prompts[completion.prompt_index].student_prompt,
            teacher_prompt=prompts[completion.prompt_index].teacher_prompt,
            completion=completion.token_ids,
        )
        for completion in completions
    ]
