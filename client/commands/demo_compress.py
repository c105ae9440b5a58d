"""`distill demo-compress`: half of a model's layers, taught to speak again."""

import argparse
from dataclasses import replace
from pathlib import Path

from client.commands.command import (
    DEFAULT_MODEL,
    Command,
    add_distributions,
    non_negative_float,
    positive_float,
    positive_int,
)
from client.demos.compress import run_compress
from client.demos.compress_settings import CompressSettings, default_training
from client.demos.compress_summary import print_compress_summary
from client.recipes.batches import Targets
from client.reports.json_values import shortest_float
from client.settings import AdamW

MEASURED_LAYERS = "0-2,8-11,20-24,27-29"
"""Layers of the default model that stay. The others went one by one, each time the one whose
removal cost the least perplexity (https://arxiv.org/abs/2402.09025); docs/compress.md compares the
choices."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = default_training()
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/compress"), metavar="DIR",
        help="directory of the results (default: %(default)s)")  # fmt: skip
    add("--model", default=DEFAULT_MODEL, metavar="REF",
        help="the teacher, and the model that is pruned (default: %(default)s)")  # fmt: skip
    add("--keep-layers", metavar="LAYERS",
        help="layers of it that the student has, counted from 0, such as 0-6,22-29; or how many "
        f"(default: {MEASURED_LAYERS}, the best measured; for {DEFAULT_MODEL} alone)")  # fmt: skip
    add("--steps", type=positive_int, default=defaults.step_count, metavar="COUNT",
        help="most optimizer steps (default: %(default)s)")  # fmt: skip
    add("--max-seconds", type=positive_float, default=defaults.max_seconds, metavar="SECONDS",
        help="most time for training, at the end of a step (default: %(default)s)")  # fmt: skip
    add("--sequences-per-step", type=positive_int, default=defaults.sequences_per_step,
        metavar="COUNT", help="sequences in a step (default: %(default)s)")  # fmt: skip
    add("--sequence-tokens", type=positive_int, default=CompressSettings.sequence_tokens,
        metavar="TOKENS", help="length of a sequence (default: %(default)s)")  # fmt: skip
    add("--heldout-sequences", type=positive_int,
        default=CompressSettings.max_heldout_sequences, metavar="COUNT",
        help="most sequences to measure on (default: %(default)s)")  # fmt: skip
    add("--learning-rate", type=non_negative_float,
        default=shortest_float(defaults.adamw.learning_rate), metavar="RATE",
        help="highest one of AdamW (default: %(default)s)")  # fmt: skip
    add("--warmup-steps", type=int, metavar="COUNT",
        help="steps in which the learning rate rises (default: a tenth of all)")  # fmt: skip
    add_distributions(parser, top_k=defaults.top_k, objective=defaults.objective)
    add("--text-file", type=Path, metavar="FILE",
        help="text to train and measure on (default: the topics of Python's help())")  # fmt: skip
    add("--seed", type=int, default=defaults.seed, metavar="SEED",
        help="of the order of the sequences (default: %(default)s)")  # fmt: skip


def _execute(arguments: argparse.Namespace) -> None:
    if arguments.sequence_tokens < 2:
        arguments.fail("--sequence-tokens must be 2 or more: the first token is not predicted")
    warmup_steps = (
        arguments.steps // 10 if arguments.warmup_steps is None else arguments.warmup_steps
    )
    if warmup_steps < 0:
        arguments.fail(f"--warmup-steps must be 0 or more, got {warmup_steps}")
    keep_layers = arguments.keep_layers
    if keep_layers is None:
        if arguments.model != DEFAULT_MODEL:
            arguments.fail(f"--keep-layers must be given for a model other than {DEFAULT_MODEL}")
        keep_layers = MEASURED_LAYERS
    defaults = default_training()
    adamw = AdamW()
    adamw.CopyFrom(defaults.adamw)
    adamw.learning_rate = arguments.learning_rate
    summary = run_compress(
        CompressSettings(
            out=arguments.out,
            model=arguments.model,
            keep_layers=keep_layers,
            text_file=arguments.text_file,
            sequence_tokens=arguments.sequence_tokens,
            max_heldout_sequences=arguments.heldout_sequences,
            targets=Targets(arguments.targets),
            training=replace(
                defaults,
                step_count=arguments.steps,
                sequences_per_step=arguments.sequences_per_step,
                top_k=arguments.top_k,
                objective=arguments.objective,
                adamw=adamw,
                warmup_steps=warmup_steps,
                max_seconds=arguments.max_seconds,
                seed=arguments.seed,
            ),
        )
    )
    print_compress_summary(summary, arguments.out)


DEMO_COMPRESS = Command(
    name="demo-compress",
    summary="prune a real model and win back what it lost, start to end",
    description="Makes a student of some of a model's layers, starts the whole model as teacher "
    "and the student beside it, and trains all the student's weights on the teacher's "
    "distributions over a text. Reports the perplexity on held-out text of the teacher and of the "
    "student before and after. Writes summary.json, metrics.jsonl, perplexity.png, pruned/ and "
    "student/ (Hugging Face directories) and the services' logs.",
    add_arguments=_add_arguments,
    execute=_execute,
)
