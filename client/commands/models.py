"""`distill models`: what the services can load."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from client.commands.command import Command
from distill.errors import ModelError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print JSON (default: a table for people)"
    )


def _execute(arguments: argparse.Namespace) -> None:
    try:
        # As for `convert`: a client may be installed without the model formats.
        from distill.models.hf_families import describe_families
    except ModuleNotFoundError as error:
        raise ModelError(f"listing models needs the package {error.name}") from None

    families = describe_families()
    if arguments.json:
        print(json.dumps([asdict(family) for family in families], indent=2))
        return
    table = Table("family", "model_type", "GGUF", "checkpoints", "features", show_lines=True)
    for family in families:
        table.add_row(
            family.title,
            "\n".join(family.model_types),
            family.gguf_architecture or "",
            "\n".join(family.checkpoints),
            "\n".join(family.features),
        )
    Console().print(table)


MODELS = Command(
    name="models",
    summary="the families of models that can be loaded",
    description="Lists the families of models that the services load, checkpoints of each whose "
    "form is known to load, and what is special about them. All serve as teacher and as student: "
    "scoring, training of adapters and of all weights, sampling, export.",
    add_arguments=_add_arguments,
    execute=_execute,
)
