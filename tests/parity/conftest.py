"""Collects these tests only where they are asked for, and prints what they measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

_measured: dict[str, float] = {}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the modules, which import PyTorch, unread without `--run-parity`."""
    is_asked_for = config.getoption("--run-parity", default=False)
    return None if is_asked_for or collection_path.suffix != ".py" else True


@pytest.fixture
def record_error() -> Callable[[str, float], float]:
    """Notes the largest error of a comparison for the summary, and returns it."""

    def record(comparison: str, error: float) -> float:
        _measured[comparison] = max(error, _measured.get(comparison, 0.0))
        return error

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest error of every comparison."""
    if _measured:
        terminalreporter.section("largest errors against Transformers on PyTorch")
        for comparison, error in _measured.items():
            terminalreporter.write_line(f"{comparison:<60} {error:.2e}")
