"""Messages of a batch, right unless a test says otherwise."""

import itertools

import numpy as np

from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2, training_pb2
from tests.student_service.batches import distribution

VOCAB_SIZE = 40
"""V of the chunks; example tokens are below it."""


def token_example(shape=(4,), *, length=6, token_ids=None, offset=0, **values):
    """`values` are the fields of TokenTargets that hold floats."""
    ids = np.ones(shape, np.int32) if token_ids is None else np.asarray(token_ids)
    given = {name: value for name, value in values.items() if value is not None}
    return training_pb2.Example(
        input_tokens=encode_int32(np.arange(length)),
        target_offset=offset,
        token_targets=training_pb2.TokenTargets(
            token_ids=encode_int32(ids),
            **{name: encode_floats(np.asarray(value, np.float32)) for name, value in given.items()},
        ),
    )


def policy_example(shape=(4,), **values):
    """Advantages of 1 and old log-probs of -1 unless said otherwise."""
    values = {"advantages": np.ones(shape), "old_log_probs": -np.ones(shape)} | values
    return token_example(shape, **values)


def distribution_example(*, length=6, offset=1, row_weights=None, **rows):
    rows = {"prompt_index": 0, "prompt_offset": 3, "row_count": 4} | rows
    return training_pb2.Example(
        input_tokens=encode_int32(np.arange(length)),
        target_offset=offset,
        distribution_targets=training_pb2.DistributionTargets(**rows),
        row_weights=None if row_weights is None else encode_floats(np.asarray(row_weights)),
    )


def make_chunks(row_count=12, first_row=3, cuts=(), prompt_index=0, support_size=4, seed=0):
    """The chunks of one prompt, cut before the given entries, and the arrays they came from."""
    arrays = distribution(np.random.default_rng(seed), row_count, support_size, VOCAB_SIZE)
    bounds = [0, *cuts, row_count]
    chunks = []
    for start, end in itertools.pairwise(bounds):
        ids, values, tails, entropies = (array[start:end] for array in arrays)
        chunks.append(
            scoring_pb2.TopKChunk(
                prompt_index=prompt_index,
                first_row=first_row + start,
                token_ids=encode_int32(ids),
                log_probs=encode_floats(values),
                prompt_log_probs=encode_floats(tails),
                tail_log_probs=encode_floats(tails),
                entropies=encode_floats(entropies),
            )
        )
    return chunks, arrays
