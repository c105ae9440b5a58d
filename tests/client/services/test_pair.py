"""A pair that this program starts, and nobody restarts."""

import time
from pathlib import Path

import pytest

from client.recipes.batches import Targets
from client.services import pair
from client.services.local import ServiceStartError
from client.services.pair import LocalPair, open_pair


class EndedService:
    """A service that has ended."""

    def check(self) -> None:
        raise ServiceStartError("teacher_service ended with status 1")


def test_a_service_of_the_pair_that_has_ended_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(_source, _name, _stack, services):
        services.append(EndedService())
        return "127.0.0.1:1", "127.0.0.1:1"

    monkeypatch.setattr(pair, "_start", start)
    started = time.monotonic()
    with (
        pytest.raises(ServiceStartError, match="ended with status 1"),
        open_pair(
            LocalPair(model="any", directory=tmp_path),
            teacher_name="main",
            targets=Targets.PULL,
            say=lambda _line: None,
        ),
    ):
        pass
    assert time.monotonic() - started < 10
