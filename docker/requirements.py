"""Prints the dependencies in pyproject.toml, one a line, for an image layer of their own.

    python requirements.py [--extra NAME] [--without NAME,NAME...]

Standard library only: it runs before anything is installed.
"""

import argparse
import re
import tomllib
from pathlib import Path


def main() -> None:
    """Print the requirements."""
    parser = argparse.ArgumentParser(description="prints the dependencies in pyproject.toml")
    parser.add_argument("--extra", help="also those of this extra")
    parser.add_argument("--without", default="", help="leave these out, separated by commas")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    if arguments.extra:
        requirements += project["optional-dependencies"][arguments.extra]
    left_out = {name for name in arguments.without.split(",") if name}
    unknown = left_out - {_name(requirement) for requirement in requirements}
    if unknown:
        parser.error(f"argument --without: not a dependency: {', '.join(sorted(unknown))}")
    print(*(each for each in requirements if _name(each) not in left_out), sep="\n")


def _name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement).group()


if __name__ == "__main__":
    main()
