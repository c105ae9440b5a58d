"""Log-probs, rankings and gradients against Transformers on PyTorch, on tiny and real weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distill.models.loading import LoadedModel, load_model
from distill.models.resolve import resolve_reference
from tests.parity.reference import load_reference, reference_gradients, reference_log_probs
from tests.support.comparison import (
    GRADIENT_TOLERANCE,
    LOG_PROB_TOLERANCE,
    SoftTargets,
    compare_top_k,
    relative_errors,
    top_k,
)
from tests.support.own_model import own_gradients, own_log_probs
from tests.support.parity_cases import (
    REAL_MODEL,
    REAL_SUPPORT_SIZE,
    REAL_TOKEN_COUNT,
    TINY_CASES,
    real_targets,
    real_token_ids,
)

pytestmark = pytest.mark.parity

TINY_TOLERANCE = 1e-4
"""A tiny model has few roundings to add up: an error that real weights would excuse shows here."""

Record = Callable[[str, float], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One model on both sides, with the inputs of the comparison."""

    name: str
    own: LoadedModel
    reference: torch.nn.Module
    token_ids: NDArray[np.int32]
    targets: dict[str, SoftTargets]
    tolerance: float


@pytest.fixture(
    scope="module",
    params=[*TINY_CASES, pytest.param(REAL_MODEL, marks=pytest.mark.real_model)],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Each tiny case, and the embedded model, read by both sides from one directory."""
    if request.param == REAL_MODEL:
        own = load_model(REAL_MODEL)
        token_ids = real_token_ids(own.tokenizer)
        assert len(token_ids) == REAL_TOKEN_COUNT
        return Pair(
            name=REAL_MODEL,
            own=own,
            reference=load_reference(resolve_reference(REAL_MODEL).directory),
            token_ids=token_ids,
            targets=real_targets(token_ids, own.config.vocab_size),
            tolerance=LOG_PROB_TOLERANCE,
        )
    case = TINY_CASES[request.param]
    directory: Path = case.write(tmp_path_factory.mktemp(case.name))
    return Pair(
        name=case.name,
        own=load_model(str(directory)),
        reference=load_reference(directory),
        token_ids=case.token_ids(),
        targets=case.targets(),
        tolerance=TINY_TOLERANCE,
    )


def test_log_probs_equal_the_reference(pair: Pair, record_error: Record) -> None:
    own = own_log_probs(pair.own, pair.token_ids)
    expected = reference_log_probs(pair.reference, pair.token_ids)
    error = float(np.abs(own - expected).max())
    assert record_error(f"{pair.name}: log-probs, nats", error) < pair.tolerance


def test_top_tokens_equal_the_reference_wherever_their_order_is_settled(pair: Pair) -> None:
    expected_ids, expected_log_probs = top_k(
        reference_log_probs(pair.reference, pair.token_ids), REAL_SUPPORT_SIZE + 1
    )
    own_ids, _ = top_k(own_log_probs(pair.own, pair.token_ids), REAL_SUPPORT_SIZE)
    agreement = compare_top_k(own_ids, expected_ids, expected_log_probs)
    assert agreement.differing == []
    # Were nearly every rank unsettled, the comparison would say nothing.
    assert agreement.settled_count > 0.9 * agreement.rank_count


@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_gradients_of_all_parameters_equal_the_reference(
    pair: Pair, loss: str, record_error: Record
) -> None:
    own = own_gradients(pair.own, pair.token_ids, pair.targets[loss])
    expected = reference_gradients(pair.reference, pair.token_ids, pair.targets[loss])
    errors = relative_errors(own, expected)
    record_error(f"{pair.name}: gradients of the {loss} loss, relative", max(errors.values()))
    assert {name: error for name, error in errors.items() if error > GRADIENT_TOLERANCE} == {}
