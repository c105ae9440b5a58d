"""Random batches for the tests of training."""

import numpy as np

from distill.rows import Rows
from student_service.training.batch import (
    LossSettings,
    NamedTokens,
    TrainingBatch,
    TrainingExample,
)


def distribution(rng, row_count, support_size, vocab_size):
    """Top-K of random distributions: ids, log p, log tail, entropy."""
    logits = rng.normal(scale=2.0, size=(row_count, vocab_size))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    ids = np.argsort(-log_p, axis=-1)[:, :support_size]
    values = np.take_along_axis(log_p, ids, axis=-1)
    rest = 1.0 - np.exp(values).sum(-1)
    tail = np.log(np.maximum(rest, 1e-30)) if support_size < vocab_size else -np.inf
    tail = np.broadcast_to(tail, (row_count,))
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    return tuple(
        np.asarray(array, dtype)
        for array, dtype in (
            (ids, np.int32),
            (values, np.float32),
            (tail, np.float32),
            (entropy, np.float32),
        )
    )


def distribution_example(
    rng, *, length, offset, row_count, vocab_size, support_size=5, row_weights=None, **fields
):
    """An example with a teacher's rows; `fields` override those of `Rows`."""
    ids, values, tail, entropy = distribution(rng, row_count, support_size, vocab_size)
    rows = {
        "prompt_index": 0,
        "first_row": 1,
        "token_ids": ids,
        "log_probs": values,
        "prompt_log_probs": np.zeros(row_count, np.float32),
        "tail_log_probs": tail,
        "entropies": entropy,
        "most_probable": True,
    } | fields
    return TrainingExample(
        input_tokens=rng.integers(0, vocab_size, length).astype(np.int32),
        target_offset=offset,
        targets=Rows(**rows),
        row_weights=np.ones(row_count, np.float32) if row_weights is None else row_weights,
    )


def token_example(rng, *, length, offset, row_count, vocab_size, support_size=1, hard=True):
    """An example with named tokens and random weights of both signs (1 when hard)."""
    shape = (row_count, support_size)
    weights = np.ones(shape) if hard else rng.normal(size=shape)
    tokens = rng.integers(0, vocab_size, shape).astype(np.int32)
    return TrainingExample(
        input_tokens=rng.integers(0, vocab_size, length).astype(np.int32),
        target_offset=offset,
        targets=NamedTokens(token_ids=tokens, weights=weights.astype(np.float32), hard=hard),
        row_weights=np.ones(row_count, np.float32),
    )


def batch_of(examples, objective="tail_bucket", **loss):
    """A batch of them."""
    return TrainingBatch(loss=LossSettings(objective=objective, **loss), examples=tuple(examples))


def ragged(rng, vocab_size, make=distribution_example, **fields):
    """Four examples of different lengths and offsets."""
    return [
        make(rng, length=length, offset=offset, row_count=rows, vocab_size=vocab_size, **fields)
        for length, offset, rows in ((9, 2, 6), (40, 11, 29), (70, 60, 8), (33, 0, 33))
    ]
