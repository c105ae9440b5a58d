import numpy as np
import pytest

from benchmarks.agreement import NOISE_MARGIN, DisagreementError, check_noise, check_overlap

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


def test_one_wrong_tensor_does_not_hide_among_many() -> None:
    generator = np.random.default_rng(0)
    exact = {f"tensor {index}": generator.normal(size=300) for index in range(14)}
    ours, theirs = (
        {name: tensor + 0.25 * generator.normal(size=300) for name, tensor in exact.items()}
        for _ in range(2)
    )
    check_noise(ours, theirs, exact)
    with pytest.raises(DisagreementError, match="tensor 5: off by 1"):
        check_noise({**ours, "tensor 5": np.zeros(300)}, theirs, exact)


def test_missing_more_of_the_top_tokens_than_the_other_side_is_refused() -> None:
    exact = np.tile(np.arange(10, dtype=np.int32), (40, 1))
    near, far = exact.copy(), exact.copy()
    near[:, -1] = 77
    far[:, -3:] = 77, 78, 79
    check_overlap(near, near, exact)
    check_overlap(near[:, ::-1], near, exact)
    with pytest.raises(DisagreementError, match="the top K: off by 3"):
        check_overlap(far, near, exact)


def test_not_a_number_and_missing_tensors_are_refused() -> None:
    with pytest.raises(DisagreementError, match="a: off by nan"):
        check_noise({**EXACT, "a": np.full(500, np.nan)}, noisy(0.01, 2), EXACT)
    with pytest.raises(DisagreementError, match=r"on one side only: \['a'\]"):
        check_noise({"b": EXACT["b"]}, noisy(0.01, 2), EXACT)
