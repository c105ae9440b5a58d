"""`distill sample`: what a model says."""

import argparse

from rich.console import Console

from client.commands.command import (
    Command,
    add_teacher_source,
    add_timeout,
    address,
    non_negative_float,
    open_student,
    open_teacher,
    positive_float,
    positive_int,
    some_text,
)
from client.results import Sample
from client.settings import SamplingParams, Tokens, WeightsRef
from distill.tokenizer import TextTokenizer


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", required=True, type=some_text, metavar="TEXT", help="the prompt")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the text as it is (default: a user's turn in the chat template)",
    )
    parser.add_argument(
        "--max-tokens",
        type=positive_int,
        default=128,
        metavar="TOKENS",
        help="longest answer (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=non_negative_float,
        default=0.7,
        metavar="T",
        help="divides the logits; 0 takes the most probable token (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=positive_float,
        default=1.0,
        metavar="P",
        help="keep the smallest set of tokens of this probability (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="SEED", help="of the samples (default: %(default)s)"
    )
    parser.add_argument(
        "--count",
        type=positive_int,
        default=1,
        metavar="COUNT",
        help="number of samples (default: %(default)s)",
    )
    parser.add_argument(
        "--student-address",
        type=address,
        metavar="HOST:PORT",
        help="sample from a running student (default: from a teacher)",
    )
    parser.add_argument(
        "--run",
        default="",
        metavar="NAME",
        help="a run of the student (default: its base model)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="a checkpoint of the run (default: its current weights)",
    )
    add_teacher_source(parser)
    add_timeout(parser)


def _execute(arguments: argparse.Namespace) -> None:
    if arguments.student_address is None and (arguments.run or arguments.checkpoint):
        arguments.fail("--run and --checkpoint need --student-address")
    if arguments.checkpoint and not arguments.run:
        arguments.fail("--checkpoint needs --run")
    if arguments.student_address is not None and arguments.teacher_address is not None:
        arguments.fail("give one of --teacher-address and --student-address")
    completions = _sample(arguments)
    console = Console()
    for completion in completions:
        if arguments.count > 1:
            console.rule(f"sample {completion.sample_index + 1}")
        print(completion.text)


def _sample(arguments: argparse.Namespace) -> list[Sample]:
    settings = SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        samples_per_prompt=arguments.count,
    )
    if arguments.student_address is None:
        with open_teacher(arguments) as teacher:
            return teacher.sample([_prompt(arguments, teacher.tokenizer())], settings)
    weights = WeightsRef(checkpoint=arguments.checkpoint) if arguments.checkpoint else None
    with open_student(arguments) as student:
        prompt = _prompt(arguments, student.tokenizer())
        model = student.under(arguments.run, weights) if arguments.run else student
        return model.sample([prompt], settings)


def _prompt(arguments: argparse.Namespace, tokenizer: TextTokenizer) -> Tokens:
    if arguments.raw:
        return tokenizer.encode(arguments.text, add_special_tokens=True)
    return tokenizer.encode_chat([{"role": "user", "content": arguments.text}])


SAMPLE = Command(
    name="sample",
    summary="what a model says",
    description="Samples from a teacher, or from a student's base model, run or checkpoint.",
    add_arguments=_add_arguments,
    execute=_execute,
)
