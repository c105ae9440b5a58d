"""What two implementations of one model must agree on, and the inputs they are compared with."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

LOG_PROB_TOLERANCE = 1e-3
"""Largest difference of a log-prob, in nats; also the gap that settles an order of two tokens."""

GRADIENT_TOLERANCE = 1e-4
"""Largest error of a parameter's gradient, relative to the norm of the whole tensor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Weighted targets at every position of one sequence; hard ones have K = 1."""

    token_ids: NDArray[np.int32]
    """[T, K]."""

    weights: FloatArray
    """[T, K]; the loss is -sum(weight * log q)."""

    temperature: float
    """Divides the logits."""


def hard_targets(token_ids: NDArray[np.int32]) -> SoftTargets:
    """The mean cross entropy of the next token; the last position has weight 0."""
    length = len(token_ids)
    following = np.roll(token_ids, -1)[:, None].astype(np.int32)
    weights = np.full((length, 1), 1 / (length - 1), np.float32)
    weights[-1] = 0
    return SoftTargets(token_ids=following, weights=weights, temperature=1.0)


def soft_targets(length: int, vocab_size: int, *, support_size: int, seed: int) -> SoftTargets:
    """Random supports under random weights, of both signs, at a temperature other than 1."""
    generator = np.random.default_rng(seed)
    token_ids = np.stack(
        [generator.permutation(vocab_size)[:support_size] for _ in range(length)]
    ).astype(np.int32)
    weights = generator.dirichlet(np.ones(support_size), size=length).astype(np.float32)
    weights[:, -1] *= -0.5
    return SoftTargets(token_ids=token_ids, weights=weights / length, temperature=0.7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKAgreement:
    """How two rankings of the same rows compare."""

    settled_count: int
    """Ranks whose neighbours in the expected ranking are farther away than the tolerance."""

    rank_count: int
    """All compared ranks."""

    differing: list[tuple[int, int]]
    """(row, rank) of the settled ranks that hold another token."""


def top_k(log_probs: FloatArray, size: int) -> tuple[NDArray[np.int32], FloatArray]:
    """The `size` most probable tokens of [T, V], best first, ties by lower id: ids, log-probs."""
    order = np.argsort(-log_probs, axis=-1, kind="stable")[:, :size]
    return order.astype(np.int32), np.take_along_axis(log_probs, order, axis=-1)


def compare_top_k(
    token_ids: NDArray[np.int32],
    expected_ids: NDArray[np.int32],
    expected_log_probs: FloatArray,
    tolerance: float = LOG_PROB_TOLERANCE,
) -> TopKAgreement:
    """Compare rankings wherever the order is settled.

    Args:
        token_ids: [T, K], best first.
        expected_ids: [T, K] or longer in K.
        expected_log_probs: [T, K + 1]: the last rank needs its neighbour too.
        tolerance: neighbours nearer than this may change places.
    """
    size = token_ids.shape[1]
    gaps = expected_log_probs[:, :size] - expected_log_probs[:, 1 : size + 1]
    before = np.concatenate([np.full((len(gaps), 1), np.inf), gaps[:, :-1]], axis=1)
    settled = (gaps > tolerance) & (before > tolerance)
    wrong = settled & (token_ids != expected_ids[:, :size])
    return TopKAgreement(
        settled_count=int(settled.sum()),
        rank_count=settled.size,
        differing=[(int(row), int(rank)) for row, rank in np.argwhere(wrong)],
    )


def relative_error(value: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """‖value − expected‖ / ‖expected‖, in float64."""
    wide = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(value, np.float64) - wide) / np.linalg.norm(wide))


def relative_errors(
    values: dict[str, FloatArray], expected: dict[str, FloatArray]
) -> dict[str, float]:
    """`relative_error` of every tensor. The names and shapes must be the same on both sides."""
    if values.keys() != expected.keys():
        raise AssertionError(f"not on both sides: {sorted(values.keys() ^ expected.keys())}")
    for name, tensor in values.items():
        if tensor.shape != expected[name].shape:
            raise AssertionError(f"{name}: shape {tensor.shape}, expected {expected[name].shape}")
    return {name: relative_error(values[name], expected[name]) for name in values}
