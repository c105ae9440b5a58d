"""`distill convert`: a model file into a directory."""

import argparse
import sys
from pathlib import Path

from client.commands.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a .gguf file, or the name smollm2-135m")
    parser.add_argument("destination", metavar="DEST", type=Path, help="the directory to make")


def _execute(arguments: argparse.Namespace) -> None:
    # Only this command needs the model formats.
    from distill.models.convert import convert

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
