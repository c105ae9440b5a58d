"""`distill models`: what the services can load."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from client.commands.command import Command
from distill.errors import ModelError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print JSON (default: a list for people)"
    )


def _execute(arguments: argparse.Namespace) -> None:
    try:
        # As for `convert`: a client may be installed without the model formats.
        from distill.families.registry import describe_families
    except ModuleNotFoundError as error:
        raise ModelError(f"listing models needs the package {error.name}") from None

    families = describe_families()
    if arguments.json:
        print(json.dumps([asdict(family) for family in families], indent=2))
        return
    console = Console(highlight=False)
    for family in families:
        gguf = f", GGUF {family.gguf_architecture}" if family.gguf_architecture else ""
        console.print(
            f"[bold]{family.title}[/bold]  (model_type {', '.join(family.model_types)}{gguf})"
        )
        for heading, lines in (("checkpoints", family.checkpoints), ("features", family.features)):
            for number, line in enumerate(lines):
                console.print(f"  {'' if number else heading:12} {line}", markup=False)


MODELS = Command(
    name="models",
    summary="the families of models that can be loaded",
    description="Lists the families of models that the services load, checkpoints of each whose "
    "form is known to load (real weights are in the tests for SmolLM2-135M and Gemma 3 270M), and "
    "what is special about them. All serve as teacher and as student: scoring, training of "
    "adapters and of all weights, sampling, export.",
    add_arguments=_add_arguments,
    execute=_execute,
)
