"""What may be the name of a run or of a checkpoint: both become parts of a path."""

import re

from distill.errors import InvalidFieldError

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


def is_name(text: str) -> bool:
    """Whether a text is 1 to 64 of [A-Za-z0-9._-], without a leading dot."""
    # fullmatch: `$` would let a trailing newline pass.
    return _NAME.fullmatch(text) is not None


def parse_name(text: str, field: str) -> str:
    """A name as it came in a field.

    Raises:
        InvalidFieldError: it is none.
    """
    if not is_name(text):
        raise InvalidFieldError(
            field, f"must be 1 to 64 of [A-Za-z0-9._-] without a leading dot, got {text[:80]!r}"
        )
    return text
