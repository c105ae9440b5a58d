"""Messages of a training request as tests send them: examples, chunks, and the whole stream."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2, training_pb2
from distill.v1 import student_service_pb2 as pb
from tests.student_service.batches import distribution

VOCAB_SIZE = 40
"""V of the chunks, unless said otherwise; example tokens are below it."""


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


def make_chunks(
    row_count=12,
    first_row=3,
    cuts=(),
    prompt_index=0,
    support_size=4,
    seed=0,
    *,
    vocab_size=VOCAB_SIZE,
):
    """The chunks of one prompt, cut before the given entries, with the arrays they came from."""
    arrays = distribution(np.random.default_rng(seed), row_count, support_size, vocab_size)
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


def without(chunk, *names):
    """A copy of the chunk that lacks some fields."""
    copy = scoring_pb2.TopKChunk()
    copy.CopyFrom(chunk)
    for name in names:
        copy.ClearField(name)
    return copy


def changed_chunk(**fields):
    """A chunk of two rows, 3 and 4, with other fields: numbers, messages, or None for absent."""
    chunk = make_chunks(row_count=2)[0][0]
    for name, value in fields.items():
        if value is None:
            chunk.ClearField(name)
        elif isinstance(value, int):
            setattr(chunk, name, value)
        else:
            getattr(chunk, name).CopyFrom(value)
    return chunk


def sampled_chunk(
    ids=((3, 7, 3, 9), (5, 5, 5, 5)),
    weights=((0.5, 0.25, 0, 0.25), (1, 0, 0, 0)),
    first_row=1,
):
    """Repeated draws in unused slots; every token has probability 0.1."""
    ids = np.array(ids, np.int32)
    named = np.array([len(set(row)) for row in ids.tolist()])
    return scoring_pb2.TopKChunk(
        first_row=first_row,
        token_ids=encode_int32(ids),
        log_probs=encode_floats(np.full(ids.shape, np.log(0.1))),
        prompt_log_probs=encode_floats(np.zeros(len(ids))),
        tail_log_probs=encode_floats(np.log1p(-0.1 * named)),
        entropies=encode_floats(np.ones(len(ids))),
        draw_weights=encode_floats(np.array(weights, np.float32)),
    )


def forward_backward_parts(
    examples: Sequence[training_pb2.Example],
    chunks: Sequence[scoring_pb2.TopKChunk] = (),
    *,
    mutation: training_pb2.Mutation | None = None,
    **batch,
) -> Iterator[pb.ForwardBackwardRequest]:
    """The messages of a stream up to its end; `batch` are fields of its header's batch."""
    batch = {"example_count": len(examples)} | batch
    header = pb.ForwardBackwardHeader(mutation=mutation, batch=training_pb2.Batch(**batch))
    yield pb.ForwardBackwardRequest(header=header)
    for example in examples:
        yield pb.ForwardBackwardRequest(example=example)
    for chunk in chunks:
        yield pb.ForwardBackwardRequest(chunk=chunk)
    yield pb.ForwardBackwardRequest(end=training_pb2.BatchEnd(chunk_count=len(chunks)))
