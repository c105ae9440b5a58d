"""Two ways to compute the same must give the same before their times are compared.

In float32 they do, to rounding. In bfloat16 each is off by noise of its own, which one bad row in a
thousand makes large: there ours must come as near to the float32 result as the straightforward way.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.arrays import FloatArray, Int32Array

TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
"""Nats of a mean log-probability or a mean loss by dtype; where nothing more exact is at hand also
of each log-probability, and the relative error of a gradient."""

NOISE_MARGIN = 2.0
"""How much larger the noise of one side may be than that of another. Each is one draw, of which a
few tokens make the most and which all tensors share: over four batches for all weights of
SmolLM2-135M ours was 0.54, 0.89, 1.11 and 1.34 times that of the straightforward way."""

TENSOR_MARGIN = 3.0
"""The same of one tensor among several."""


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
        error = _distance(tensor, expected[name])
        if not error <= tolerance:
            raise DisagreementError(f"the gradient of {name} is off by {error:.2e} of its norm")


def check_noise(
    values: Mapping[str, NDArray[Any]],
    others: Mapping[str, NDArray[Any]],
    exact: Mapping[str, NDArray[Any]],
) -> None:
    """Compare two sides' distances from a third that is more exact.

    A distance is the norm of the difference relative to the exact tensor's own. NOISE_MARGIN holds
    for their root mean square, TENSOR_MARGIN for each: one wrong tensor must not hide among many.

    Args:
        values: tensors by name of the side that is checked.
        others: of the side that it is compared with.
        exact: what both approximate.

    Raises:
        DisagreementError: the names differ, or `values` are further away than the margins allow.
    """
    unshared = (values.keys() ^ exact.keys()) | (others.keys() ^ exact.keys())
    if unshared:
        raise DisagreementError(f"on one side only: {sorted(unshared)}")
    pairs = {
        name: (_distance(values[name], tensor), _distance(others[name], tensor))
        for name, tensor in exact.items()
    }
    for name, (own, other) in pairs.items():
        _check_share(name, own, other, TENSOR_MARGIN)
    own, other = (float(norm) for norm in np.sqrt(np.square(list(pairs.values())).mean(0)))
    _check_share("all together", own, other, NOISE_MARGIN)


def check_overlap(ids: Int32Array, other_ids: Int32Array, exact_ids: Int32Array) -> None:
    """Compare how many of the exact top K each of two sides misses, all [P, K].

    Raises:
        DisagreementError: `ids` miss more than NOISE_MARGIN allows.
    """
    own, other = (
        float(1 - (side[:, :, None] == exact_ids[:, None]).any(-1).mean())
        for side in (ids, other_ids)
    )
    _check_share("the top K", own, other, NOISE_MARGIN)


def _check_share(what: str, own: float, other: float, margin: float) -> None:
    if not own <= margin * other:
        raise DisagreementError(
            f"{what}: off by {own:.2e} of the float32 result, the straightforward way by "
            f"{other:.2e}"
        )


def _distance(tensor: NDArray[Any], exact: NDArray[Any]) -> float:
    wide = np.asarray(exact, np.float64)
    return float(np.linalg.norm(np.asarray(tensor, np.float64) - wide) / np.linalg.norm(wide))
