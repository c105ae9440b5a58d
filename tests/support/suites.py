"""Which cases of a law run only when asked for."""

from typing import Any

import pytest


def slow(*values: Any, id: str | None = None) -> Any:
    """A case for `make test-all` alone: `make test` checks the law on a cheaper one."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)
