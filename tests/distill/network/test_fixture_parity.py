"""Parity with Transformers without PyTorch: against values that it computed once.

`tests/fixtures/make_fixtures.py` makes the values; `tests/parity` compares with it directly.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from distill.models.loading import LoadedModel, load_model
from tests.support.comparison import (
    GRADIENT_TOLERANCE,
    LOG_PROB_TOLERANCE,
    SoftTargets,
    compare_top_k,
    relative_error,
    top_k,
)
from tests.support.own_model import own_gradients, own_log_probs
from tests.support.parity_cases import (
    FIXTURES,
    GRADIENT_SAMPLE_SIZE,
    REAL_MODEL,
    REAL_SUPPORT_SIZE,
    REAL_TOKEN_COUNT,
    TINY_CASES,
    gradient_sample,
    own_token_log_probs,
    real_targets,
    real_token_ids,
)

TINY_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixture:
    """What Transformers computed for a model."""

    weights_version: str
    arrays: dict[str, NDArray[np.generic]]

    def gradients(self, loss: str, part: str) -> dict[str, NDArray[np.generic]]:
        prefix = f"{loss}/{part}/"
        return {
            key.removeprefix(prefix): array
            for key, array in self.arrays.items()
            if key.startswith(prefix)
        }


def read_fixture(name: str) -> Fixture:
    with safe_open(FIXTURES / "parity" / f"{name}.safetensors", framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Fixture(weights_version=file.metadata()["weights_version"], arrays=arrays)


def assert_gradients_equal(
    model: LoadedModel, targets: SoftTargets, fixture: Fixture, loss: str, sample_size: int
) -> None:
    token_ids = fixture.arrays["token_ids"]
    gradients = own_gradients(model, token_ids, targets)
    samples = fixture.gradients(loss, "sample")
    norms = fixture.gradients(loss, "norm")
    assert gradients.keys() == samples.keys() == norms.keys()
    for name, gradient in gradients.items():
        sample = gradient_sample(gradient, sample_size)
        # A sample is smaller than its tensor, and may hold its small entries: the tensor's norm,
        # shrunk to the sample's share of the entries, is the scale of both.
        scale = float(norms[name]) * (sample.size / gradient.size) ** 0.5
        error = np.linalg.norm(sample.astype(np.float64) - samples[name]) / scale
        assert error < GRADIENT_TOLERANCE, name
        norm = np.linalg.norm(gradient.astype(np.float64))
        assert relative_error(norm, norms[name]) < GRADIENT_TOLERANCE, name


@pytest.fixture(
    scope="module", params=[name for name, case in TINY_CASES.items() if case.has_fixture]
)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, LoadedModel, Fixture]:
    case = TINY_CASES[request.param]
    directory: Path = case.write(tmp_path_factory.mktemp(case.name))
    return case.name, load_model(str(directory)), read_fixture(case.name)


def test_tiny_weights_are_those_of_the_fixture(tiny: tuple[str, LoadedModel, Fixture]) -> None:
    name, model, fixture = tiny
    assert model.weights_version == fixture.weights_version
    np.testing.assert_array_equal(TINY_CASES[name].token_ids(), fixture.arrays["token_ids"])


def test_tiny_log_probs_equal_the_reference(tiny: tuple[str, LoadedModel, Fixture]) -> None:
    _, model, fixture = tiny
    token_ids = fixture.arrays["token_ids"]
    log_probs = own_log_probs(model, token_ids)
    np.testing.assert_allclose(
        log_probs[::12], fixture.arrays["log_probs"], rtol=0, atol=TINY_TOLERANCE
    )
    np.testing.assert_allclose(
        own_token_log_probs(log_probs, token_ids),
        fixture.arrays["own_token_log_probs"],
        rtol=0,
        atol=TINY_TOLERANCE,
    )


@pytest.mark.slow  # make test-parity compares the same gradients with the library itself
@pytest.mark.parametrize("loss", ["hard", "soft"])
def test_tiny_gradients_equal_the_reference(
    tiny: tuple[str, LoadedModel, Fixture], loss: str
) -> None:
    name, model, fixture = tiny
    targets = TINY_CASES[name].targets()[loss]
    assert_gradients_equal(model, targets, fixture, loss, GRADIENT_SAMPLE_SIZE["tiny"])


@pytest.fixture(scope="module")
def real() -> tuple[LoadedModel, Fixture]:
    return load_model(REAL_MODEL), read_fixture(REAL_MODEL)


@pytest.mark.real_model
def test_converted_weights_are_those_of_the_fixture(real: tuple[LoadedModel, Fixture]) -> None:
    model, fixture = real
    assert model.weights_version == fixture.weights_version


@pytest.mark.real_model
def test_real_text_has_the_tokens_of_the_fixture(real: tuple[LoadedModel, Fixture]) -> None:
    model, fixture = real
    token_ids = real_token_ids(model.tokenizer)
    assert len(token_ids) == REAL_TOKEN_COUNT
    np.testing.assert_array_equal(token_ids, fixture.arrays["token_ids"])


@pytest.mark.real_model
def test_real_log_probs_and_rankings_equal_the_reference(
    real: tuple[LoadedModel, Fixture],
) -> None:
    model, fixture = real
    token_ids = fixture.arrays["token_ids"]
    expected_ids = fixture.arrays["top_ids"]
    expected_log_probs = fixture.arrays["top_log_probs"]
    log_probs = own_log_probs(model, token_ids)
    np.testing.assert_allclose(
        np.take_along_axis(log_probs, expected_ids.astype(np.int64), -1),
        expected_log_probs,
        rtol=0,
        atol=LOG_PROB_TOLERANCE,
    )
    np.testing.assert_allclose(
        own_token_log_probs(log_probs, token_ids),
        fixture.arrays["own_token_log_probs"],
        rtol=0,
        atol=LOG_PROB_TOLERANCE,
    )
    own_ids, _ = top_k(log_probs, REAL_SUPPORT_SIZE)
    agreement = compare_top_k(own_ids, expected_ids, expected_log_probs)
    assert agreement.differing == []
    assert agreement.settled_count > 0.9 * agreement.rank_count


@pytest.mark.real_model
@pytest.mark.parametrize("loss", [pytest.param("hard", marks=pytest.mark.slow), "soft"])
def test_real_gradients_equal_the_reference(real: tuple[LoadedModel, Fixture], loss: str) -> None:
    model, fixture = real
    targets = real_targets(fixture.arrays["token_ids"], model.config.vocab_size)[loss]
    assert_gradients_equal(model, targets, fixture, loss, GRADIENT_SAMPLE_SIZE["real"])


@pytest.mark.real_model
def test_tokenizer_and_chat_template_equal_the_reference(
    real: tuple[LoadedModel, Fixture],
) -> None:
    tokenizer = real[0].tokenizer
    expected = json.loads((FIXTURES / "parity" / "tokenizer.json").read_text(encoding="utf-8"))
    for case in expected["texts"]:
        assert tokenizer.encode(case["text"]) == case["token_ids"], case["text"]
    for case in expected["chats"]:
        rendered = tokenizer.render_chat(
            case["messages"], add_generation_prompt=case["add_generation_prompt"]
        )
        assert rendered == case["text"]
