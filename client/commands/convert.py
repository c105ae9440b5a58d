"""`distill convert`: a model file into a directory."""

import argparse
import sys
from pathlib import Path

from client.commands.command import Command
from distill.errors import ModelError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file, or the name smollm2-135m")
    parser.add_argument("destination", metavar="DEST", type=Path, help="the directory to make")


def _execute(arguments: argparse.Namespace) -> None:
    try:
        # Only this command needs the model formats; a client may be installed without them.
        from distill.models.convert import convert
    except ModuleNotFoundError as error:
        raise ModelError(f"converting needs the package {error.name}") from None

    convert(
        arguments.source,
        arguments.destination,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(arguments.destination)


CONVERT = Command(
    name="convert",
    summary="convert a model file into a directory",
    description="Converts a GGUF file into a directory of safetensors, config.json and "
    "tokenizer.json that the services and Transformers load. The services do it by themselves, "
    "once, into their cache.",
    add_arguments=_add_arguments,
    execute=_execute,
)
