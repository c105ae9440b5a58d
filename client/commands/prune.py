"""`distill prune`: a smaller model from some of a model's layers."""

import argparse
import sys
from pathlib import Path

from client.commands.command import Command
from distill.errors import ModelError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a directory, a .gguf file, the name smollm2-135m, or a hub id",
    )
    parser.add_argument(
        "--keep-layers",
        required=True,
        metavar="LAYERS",
        help="layers that stay, counted from 0, such as 0-6,22-29; or how many, such as 15: then "
        "a block in the middle goes, with a third of what stays before it",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the directory to make"
    )


def _execute(arguments: argparse.Namespace) -> None:
    try:
        # Only here: a client may be installed without what reads models.
        from distill.models.pruning import prune
    except ModuleNotFoundError as error:
        raise ModelError(f"pruning needs the package {error.name}") from None

    layers = prune(
        arguments.model,
        arguments.keep_layers,
        arguments.out,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(f"kept {len(layers)} layers: {', '.join(map(str, layers))}", file=sys.stderr)
    print(arguments.out)


PRUNE = Command(
    name="prune",
    summary="make a smaller model from some of a model's layers",
    description="Writes a model that has only some of the layers of another, as a directory that "
    "the services and Transformers load. It is a student to be trained: its answers are of little "
    "use before (distill demo-compress does both).",
    add_arguments=_add_arguments,
    execute=_execute,
)
