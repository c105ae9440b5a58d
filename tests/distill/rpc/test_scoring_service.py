"""What the services start with: the options reach the engine, and the model bounds the limits."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.limits import RequestLimits
from distill.rpc import scoring_service
from distill.rpc.options import ServerOptions
from distill.rpc.scoring_service import ScoringService

OPTIONS = ServerOptions(
    model="tiny",
    host="127.0.0.1",
    port=0,
    ready_file=None,
    exit_when_stdin_closes=False,
    dtype="bfloat16",
    mask_padded_vocabulary=False,
    max_top_k=None,
    max_sequence_tokens=None,
    cache_dir=Path("cache"),
    max_concurrent_requests=8,
    grace_seconds=1,
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """The calls of `start_engine`, whose model has a context of 100 and 50 tokens."""
    calls = []
    config = SimpleNamespace(max_position_count=100, valid_vocab_size=50)

    def start_engine(reference: str, **settings: object) -> SimpleNamespace:
        calls.append((reference, settings))
        return SimpleNamespace(model=SimpleNamespace(config=config))

    monkeypatch.setattr(scoring_service, "start_engine", start_engine)
    return calls


def test_the_options_reach_the_engine(started: list[tuple[str, dict[str, object]]]) -> None:
    ScoringService.start(OPTIONS)
    expected = {"dtype": "bfloat16", "cache_dir": Path("cache"), "mask_padded_vocabulary": False}
    assert started == [("tiny", expected)]


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("asked_tokens", "asked_top_k", "sequence_tokens", "top_k"),
    [(None, None, 100, 50), (7, 3, 7, 3), (101, 51, 100, 50)],
)
def test_the_limits_are_those_asked_for_within_what_the_model_can_do(
    asked_tokens: int | None, asked_top_k: int | None, sequence_tokens: int, top_k: int
) -> None:
    options = replace(OPTIONS, max_sequence_tokens=asked_tokens, max_top_k=asked_top_k)
    limits = ScoringService.start(options).limits
    assert limits == RequestLimits(max_sequence_tokens=sequence_tokens, max_top_k=top_k)


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("held_bytes", "request_bytes"), [(4 << 30, 1 << 30), (1 << 30, 1 << 30), (5 << 20, 5 << 20)]
)
def test_no_request_may_be_larger_than_what_all_may_hold(
    held_bytes: int, request_bytes: int
) -> None:
    limits = ScoringService.start(replace(OPTIONS, max_held_bytes=held_bytes)).limits
    assert (limits.max_held_bytes, limits.max_request_bytes) == (held_bytes, request_bytes)


@pytest.mark.usefixtures("started")
def test_only_a_service_with_mutations_has_some_in_flight() -> None:
    assert ScoringService.start(OPTIONS).limits.max_in_flight_mutations == 0
    limits = ScoringService.start(OPTIONS, max_in_flight_mutations=7).limits
    assert limits.max_in_flight_mutations == 7
