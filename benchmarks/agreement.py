"""Two ways to compute the same must give the same before their times are compared."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.tensors import FloatArray, Int32Array

TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
"""Nats of a log-probability or a mean loss, and the relative error of a gradient, by dtype."""


class DisagreementError(Exception):
    """The results differ: a ratio of their times would mean nothing."""


def check_top_k(
    ids: Int32Array,
    log_probs: FloatArray,
    expected_ids: Int32Array,
    expected_log_probs: FloatArray,
    tolerance: float,
) -> None:
    """Compare rankings [P, K]; tokens nearer to each other than the tolerance may change places.

    Raises:
        DisagreementError: they differ.
    """
    worst = np.abs(log_probs - expected_log_probs).max()
    if not worst <= tolerance:
        raise DisagreementError(f"a top-K log-prob is off by {worst:.2e}")
    gaps = expected_log_probs[:, :-1] - expected_log_probs[:, 1:]
    before = np.pad(gaps, ((0, 0), (1, 0)), constant_values=np.inf)
    # Beyond the last rank lies a neighbour that is not known.
    after = np.pad(gaps, ((0, 0), (0, 1)))
    settled = (before > tolerance) & (after > tolerance)
    wrong = int((settled & (ids != expected_ids)).sum())
    if wrong:
        raise DisagreementError(f"{wrong} of {int(settled.sum())} settled ranks hold another token")


def check_close(what: str, value: float, expected: float, tolerance: float) -> None:
    """Compare two numbers, relative to the expected one where that is larger than 1.

    Raises:
        DisagreementError: they differ.
    """
    error = abs(value - expected) / max(1.0, abs(expected))
    if not error <= tolerance:
        raise DisagreementError(f"{what}: {value:.6g} instead of {expected:.6g}")


def check_gradients(
    gradients: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], tolerance: float
) -> None:
    """Compare tensors by name: the norm of the difference, relative to the tensor's own.

    Raises:
        DisagreementError: a name is on one side only, or a tensor differs.
    """
    if gradients.keys() != expected.keys():
        raise DisagreementError(f"on one side only: {sorted(gradients.keys() ^ expected.keys())}")
    for name, tensor in gradients.items():
        wide = np.asarray(expected[name], np.float64)
        error = np.linalg.norm(np.asarray(tensor, np.float64) - wide) / np.linalg.norm(wide)
        if not error <= tolerance:
            raise DisagreementError(f"the gradient of {name} is off by {error:.2e} of its norm")
