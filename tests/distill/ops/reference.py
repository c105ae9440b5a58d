"""The head and the objectives once more, densely, in NumPy float64."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def tail_log_probs(log_probs: Array, token_ids: NDArray[np.integer]) -> Array:
    """Log of the mass outside the support; log_probs [N, V], token_ids [N, K]."""
    probabilities = np.exp(log_probs)
    np.put_along_axis(probabilities, token_ids, 0.0, axis=-1)
    with np.errstate(divide="ignore"):
        return np.log(probabilities.sum(-1))


def with_tail(on_support: Array, tail: Array) -> Array:
    return np.concatenate([on_support, tail[:, None]], axis=-1)


def kl(log_a: Array, log_b: Array) -> Array:
    """sum a (log a - log b) of each row; outcomes with a = 0 count nothing."""
    a = np.exp(log_a)
    with np.errstate(invalid="ignore"):
        return np.where(a == 0, 0.0, a * (log_a - log_b)).sum(-1)


def generalized_jsd(log_p: Array, log_q: Array, beta: float) -> Array:
    """As TRL computes it: beta 0 and 1 are the two KLs."""
    if beta == 0:
        return kl(log_p, log_q)
    if beta == 1:
        return kl(log_q, log_p)
    log_m = np.logaddexp(log_q + np.log1p(-beta), log_p + np.log(beta))
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def policy_losses(
    name: str, log_q: Array, advantages: Array, old: Array, clips: tuple[float, float]
) -> Array:
    """The three objectives of advantages; cispo's ratio is that of the given log_q."""
    ratio = np.exp(log_q - old)
    if name == "importance_sampling":
        return -(ratio * advantages).sum(-1)
    clipped = np.clip(ratio, *clips)
    assert name == "ppo"
    return -np.minimum(ratio * advantages, clipped * advantages).sum(-1)


def row_losses(
    name: str,
    logits: Array,
    token_ids: NDArray[np.integer],
    values: Array,
    tail: Array,
    *,
    old_log_probs: Array | None = None,
    beta: float = 0.5,
    clips: tuple[float, float] = (0.8, 1.2),
    frozen_ratio: Array | None = None,
) -> Array:
    """Loss of each row for the objective `name`; logits [N, V], values [N, K], tail [N].

    `frozen_ratio` [N, K] is what stop-gradient holds fixed in cispo.
    """
    dense = log_softmax(logits)
    log_q = np.take_along_axis(dense, token_ids, axis=-1)
    p = np.exp(values)
    if name in ("cross_entropy", "sampled"):
        return -(values * log_q).sum(-1)
    if name == "renormalized":
        return -(p / p.sum(-1, keepdims=True) * log_q).sum(-1)
    if name == "truncated":
        return (p * (values - log_q)).sum(-1)
    if name == "support":
        return kl(log_softmax(values), log_softmax(log_q))
    if name == "reverse_support":
        return kl(log_softmax(log_q), log_softmax(values))
    if name == "reverse_truncated":
        return kl(log_q, values)
    if name == "cispo":
        assert frozen_ratio is not None
        return -(np.clip(frozen_ratio, *clips) * values * log_q).sum(-1)
    if name in ("importance_sampling", "ppo"):
        assert old_log_probs is not None
        return policy_losses(name, log_q, values, old_log_probs, clips)
    outcomes_q = with_tail(log_q, tail_log_probs(dense, token_ids))
    outcomes_p = with_tail(values, tail)
    beta = {"tail_bucket": 0.0, "reverse_tail_bucket": 1.0, "jsd": beta}[name]
    return generalized_jsd(outcomes_p, outcomes_q, beta)


def logits_gradient(
    name: str,
    logits: Array,
    token_ids: NDArray[np.integer],
    values: Array,
    tail: Array,
    **settings: object,
) -> Array:
    """Central finite differences of the summed loss in every logit, [N, V]."""
    gradient = np.empty_like(logits)
    step = 1e-5
    for column in range(logits.shape[1]):
        offset = np.zeros_like(logits)
        offset[:, column] = step
        above = row_losses(name, logits + offset, token_ids, values, tail, **settings)
        below = row_losses(name, logits - offset, token_ids, values, tail, **settings)
        gradient[:, column] = (above - below) / (2 * step)
    return gradient
