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


def row_losses(
    name: str, logits: Array, token_ids: NDArray[np.integer], values: Array, tail: Array
) -> Array:
    """Loss of each row for the objective `name`; logits [N, V], values [N, K], tail [N]."""
    dense = log_softmax(logits)
    log_q = np.take_along_axis(dense, token_ids, axis=-1)
    p = np.exp(values)
    if name == "cross_entropy":
        return -(values * log_q).sum(-1)
    if name == "renormalized":
        return -(p / p.sum(-1, keepdims=True) * log_q).sum(-1)
    if name == "truncated":
        return (p * (values - log_q)).sum(-1)
    if name == "support":
        log_pbar, log_qbar = log_softmax(values), log_softmax(log_q)
        return (np.exp(log_pbar) * (log_pbar - log_qbar)).sum(-1)
    assert name == "tail_bucket"
    student_tail = tail_log_probs(dense, token_ids)
    outside = np.where(np.isneginf(tail), 0.0, np.exp(tail) * (tail - student_tail))
    return (p * (values - log_q)).sum(-1) + outside


def logits_gradient(
    name: str, logits: Array, token_ids: NDArray[np.integer], values: Array, tail: Array
) -> Array:
    """Central finite differences of the summed loss in every logit, [N, V]."""
    gradient = np.empty_like(logits)
    step = 1e-5
    for column in range(logits.shape[1]):
        offset = np.zeros_like(logits)
        offset[:, column] = step
        above = row_losses(name, logits + offset, token_ids, values, tail)
        below = row_losses(name, logits - offset, token_ids, values, tail)
        gradient[:, column] = (above - below) / (2 * step)
    return gradient
