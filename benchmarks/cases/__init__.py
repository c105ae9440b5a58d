"""The cases by name, in the order in which they run."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.cases import (
    codec,
    delta_net,
    experts,
    memory,
    sampling,
    second_start,
    student,
    teacher,
)
from benchmarks.models import LARGE_VOCABULARY, MODEL_NAMES
from benchmarks.results import CaseResult
from distill.models.references import EMBEDDED_NAME

Run = Callable[[Bench], list[CaseResult]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to measure."""

    name: str
    """On the command line and in the results."""

    run: Run
    """Measures it on one model."""

    models: tuple[str, ...] = MODEL_NAMES
    """On which models, unless others are asked for."""

    quick_models: tuple[str, ...] = (EMBEDDED_NAME,)
    """On which with --quick."""

    is_quick: bool = True
    """Whether --quick measures it unless it is asked for."""


CASES = (
    Case(name="teacher_dense", run=teacher.dense),
    Case(name="teacher_completion_only", run=teacher.completion_only),
    Case(name="teacher_shared_prefix", run=teacher.shared_prefix),
    Case(name="teacher_ragged", run=teacher.ragged),
    Case(name="student_lora_soft_dense", run=student.lora_soft_dense),
    Case(name="student_lora_hard_dense", run=student.lora_hard_dense, is_quick=False),
    Case(name="student_lora_soft_k100_dense", run=student.lora_soft_k100_dense, is_quick=False),
    Case(name="student_lora_soft_ragged", run=student.lora_soft_ragged),
    Case(name="student_lora_hard_ragged", run=student.lora_hard_ragged, is_quick=False),
    Case(name="student_full_soft_dense", run=student.full_soft_dense),
    Case(name="student_full_hard_dense", run=student.full_hard_dense, is_quick=False),
    Case(name="student_full_soft_ragged", run=student.full_soft_ragged, is_quick=False),
    Case(name="sampling_batch8", run=sampling.batch8),
    Case(
        name="delta_net_layer",
        run=delta_net.delta_net_layer,
        models=(EMBEDDED_NAME,),
        is_quick=False,
    ),
    Case(name="experts_layer", run=experts.experts_layer, models=(EMBEDDED_NAME,), is_quick=False),
    Case(
        name="second_start",
        run=second_start.second_start,
        models=(EMBEDDED_NAME,),
        is_quick=False,
    ),
    Case(name="codec", run=codec.codec, models=(EMBEDDED_NAME,)),
    Case(
        name="head_memory",
        run=memory.head_memory,
        models=(LARGE_VOCABULARY,),
        quick_models=(LARGE_VOCABULARY,),
    ),
)
"""All cases."""
