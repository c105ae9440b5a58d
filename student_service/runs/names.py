"""The names of runs and checkpoints. They become parts of paths, so few characters are allowed."""

import re

from distill.errors import InvalidFieldError

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


def is_name(text: str) -> bool:
    """Whether a text is 1 to 64 of [A-Za-z0-9._-], without a leading dot."""
    # fullmatch: `$` would let a trailing newline pass.
    return _NAME.fullmatch(text) is not None


def parse_name(text: str, field: str) -> str:
    """The text of a field, which must be a name.

    Raises:
        InvalidFieldError: it is not one.
    """
    if not is_name(text):
        raise InvalidFieldError(
            field, f"must be 1 to 64 of [A-Za-z0-9._-] without a leading dot, got {text[:80]!r}"
        )
    return text
