"""`distill demo`: the whole system on a real model."""

import argparse
from pathlib import Path

from client.commands.command import (
    DEFAULT_MODEL,
    Command,
    add_distributions,
    address,
    non_negative_float,
    positive_float,
    positive_int,
)
from client.demos.sdft import DemoSettings, run_demo
from client.demos.sdft_summary import print_summary
from client.errors import DatasetError
from client.recipes.batches import Targets
from client.recipes.sdft import SdftSettings
from client.reports.json_values import shortest_float
from client.services.pair import LocalPair, RunningPair
from client.settings import AdamW, LoraConfig

# Of the source tree: an installed package has no examples, and `_check_questions` says so.
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = SdftSettings()
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/demo"), metavar="DIR",
        help="directory of the results (default: %(default)s)")  # fmt: skip
    add("--steps", type=positive_int, default=defaults.step_count, metavar="COUNT",
        help="optimizer steps (default: %(default)s)")  # fmt: skip
    add("--prompts-per-step", type=positive_int, default=defaults.prompts_per_step,
        metavar="COUNT", help="questions in a step (default: %(default)s)")  # fmt: skip
    add("--max-completion-tokens", type=positive_int, default=defaults.max_completion_tokens,
        metavar="TOKENS", help="longest answer (default: %(default)s)")  # fmt: skip
    add("--learning-rate", type=non_negative_float,
        default=shortest_float(defaults.adamw.learning_rate), metavar="RATE",
        help="of AdamW (default: %(default)s)")  # fmt: skip
    add("--rank", type=positive_int, default=16, metavar="RANK",
        help="rank of the LoRA adapter on all projections (default: %(default)s)")  # fmt: skip
    add_distributions(parser, top_k=defaults.top_k, objective=defaults.objective)
    add("--seed", type=int, default=defaults.seed, metavar="SEED",
        help="of the order of the questions and of the samples (default: %(default)s)")  # fmt: skip
    add("--training-file", type=Path, default=_EXAMPLES / "questions_train.jsonl", metavar="FILE",
        help="questions to train on (default: examples/questions_train.jsonl)")  # fmt: skip
    add("--heldout-file", type=Path, default=_EXAMPLES / "questions_heldout.jsonl",
        metavar="FILE",
        help="questions to measure on (default: examples/questions_heldout.jsonl)")  # fmt: skip
    add("--model", default=DEFAULT_MODEL, metavar="REF",
        help="model of both services that are started (default: %(default)s)")  # fmt: skip
    add("--teacher-address", type=address, metavar="HOST:PORT",
        help="use this running teacher; needs --student-address (default: start both)")  # fmt: skip
    add("--student-address", type=address, metavar="HOST:PORT",
        help="use this running student; needs --teacher-address (default: start both)")  # fmt: skip
    add("--teacher-name", default="main", metavar="NAME",
        help="the student's name for the teacher (default: %(default)s)")  # fmt: skip
    add("--wait-seconds", type=positive_float, default=300.0, metavar="SECONDS",
        help="how long running services may take to be ready (default: %(default)s)")  # fmt: skip


def _check_questions(path: Path, option: str) -> None:
    if path.parent == _EXAMPLES and not path.exists():
        raise DatasetError(
            f"{option}: must be given, for the questions that ship with the project are not "
            f"installed with it; they are examples/{path.name} in its source tree"
        )


def _execute(arguments: argparse.Namespace) -> None:
    _check_questions(arguments.training_file, "--training-file")
    _check_questions(arguments.heldout_file, "--heldout-file")
    summary = run_demo(
        DemoSettings(
            out=arguments.out,
            training_file=arguments.training_file,
            heldout_file=arguments.heldout_file,
            services=_services(arguments),
            targets=Targets(arguments.targets),
            teacher_name=arguments.teacher_name,
            lora=LoraConfig(rank=arguments.rank),
            training=SdftSettings(
                step_count=arguments.steps,
                prompts_per_step=arguments.prompts_per_step,
                max_completion_tokens=arguments.max_completion_tokens,
                top_k=arguments.top_k,
                objective=arguments.objective,
                adamw=AdamW(learning_rate=arguments.learning_rate, max_gradient_norm=1.0),
                seed=arguments.seed,
            ),
        )
    )
    print_summary(summary, arguments.out)


def _services(arguments: argparse.Namespace) -> LocalPair | RunningPair:
    if arguments.teacher_address is None and arguments.student_address is None:
        return LocalPair(model=arguments.model, directory=arguments.out)
    if arguments.teacher_address is None or arguments.student_address is None:
        arguments.fail("--teacher-address and --student-address need each other")
    return RunningPair(
        teacher=arguments.teacher_address,
        student=arguments.student_address,
        wait_seconds=arguments.wait_seconds,
    )


DEMO = Command(
    name="demo",
    summary="self-distillation of a real model, start to end",
    description="Starts a teacher and a student, lets the student learn an answer format that "
    "only the teacher is shown, and reports the KL and the success on held-out questions before "
    "and after. Writes summary.json, metrics.jsonl, curves.png, adapter/ (PEFT) and the "
    "services' logs.",
    add_arguments=_add_arguments,
    execute=_execute,
)
