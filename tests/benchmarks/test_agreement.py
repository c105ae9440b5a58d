import numpy as np
import pytest

from benchmarks.agreement import NOISE_MARGIN, DisagreementError, check_noise

EXACT = {"a": np.linspace(1, 2, 500), "b": np.linspace(-30, 5, 400).reshape(20, 20)}


def noisy(size: float, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: a + size * np.abs(a).mean() * generator.normal(size=a.shape)
        for name, a in EXACT.items()
    }


def test_noise_of_the_same_size_passes_and_more_does_not() -> None:
    check_noise(noisy(0.01, 1), noisy(0.01, 2), EXACT)
    check_noise(EXACT, noisy(0.01, 2), EXACT)
    with pytest.raises(DisagreementError, match="off by"):
        check_noise(noisy(0.01 * NOISE_MARGIN * 1.1, 1), noisy(0.01, 2), EXACT)


def test_a_wrong_small_tensor_is_not_hidden_by_a_large_one() -> None:
    wrong = {**noisy(0.01, 1), "a": EXACT["a"] * 1.1}
    with pytest.raises(DisagreementError, match="off by"):
        check_noise(wrong, noisy(0.01, 2), EXACT)


def test_not_a_number_and_missing_tensors_are_refused() -> None:
    with pytest.raises(DisagreementError, match="off by nan"):
        check_noise({**EXACT, "a": np.full(500, np.nan)}, noisy(0.01, 2), EXACT)
    with pytest.raises(DisagreementError, match=r"on one side only: \['a'\]"):
        check_noise({"b": EXACT["b"]}, noisy(0.01, 2), EXACT)
