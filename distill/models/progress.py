"""Lines of text for people, at each step of something that takes long."""

from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with each line."""


def say_nothing(_line: str) -> None:
    """For callers that nobody watches."""
