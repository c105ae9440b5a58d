"""Hazards of an example: its input, its targets, its weights."""

import numpy as np

from distill.tensors import encode_int32
from distill.v1 import tensor_pb2, training_pb2
from tests.support.hazards.hazard import (
    DISTRIBUTIONS,
    MAX_TOP_K,
    TOKENS,
    VOCAB,
    Hazard,
    objective,
)
from tests.support.training_messages import distribution_example, policy_example, token_example

TARGETS = "examples[0].token_targets"
SHAPE = f"{TARGETS}.token_ids.shape"
ROWS = "examples[0].distribution_targets"


def reshaped(*shape: int) -> training_pb2.Example:
    """Four token ids that say another shape."""
    example = token_example()
    ids = tensor_pb2.Int32Tensor(shape=shape, values=[1, 1, 1, 1])
    example.token_targets.token_ids.CopyFrom(ids)
    return example


NO_TARGETS = training_pb2.Example(input_tokens=encode_int32(np.arange(3)))

TOKEN_ROWS = {
    "NaN weight": (f"{TARGETS}.weights", "got nan", token_example(weights=[1, np.nan, 1, 1])),
    "infinite weight": (f"{TARGETS}.weights", "got inf", token_example(weights=[1, np.inf, 1, 1])),
    "weights of another rank": (
        *(f"{TARGETS}.weights.shape", "must be that of the token ids [4]"),
        token_example(weights=np.ones((4, 1))),
    ),
    "weights of another length": (
        *(f"{TARGETS}.weights.shape", "must be that of the token ids [4]"),
        token_example(weights=np.ones(3)),
    ),
    "id V": (
        *(f"{TARGETS}.token_ids", f"must be in [0, {VOCAB}), got {VOCAB}"),
        token_example(token_ids=[1, 2, 3, VOCAB]),
    ),
    "negative id": (
        *(f"{TARGETS}.token_ids", f"must be in [0, {VOCAB}), got -3"),
        token_example(token_ids=[1, 2, -3, 1]),
    ),
    "no rows of targets": (f"{TARGETS}.token_ids", "must not be empty", token_example((0,))),
    "K 0": (f"{TARGETS}.token_ids", "must not be empty", token_example((4, 0))),
    "K over the limit": (SHAPE, f"K must be in [1, {MAX_TOP_K}], got 9", token_example((4, 9))),
    "three dimensions": (SHAPE, "must have 1 or 2 dimensions, got 3", token_example((2, 2, 1))),
    "negative dimension": (SHAPE, "", reshaped(-1)),
    "negative dimensions": (SHAPE, "", reshaped(-2, -2)),
    "negative second dimension": (SHAPE, "", reshaped(4, -1)),
    "shape product": (SHAPE, "", reshaped(2, 3)),
    "overflowing shape product": (SHAPE, "", reshaped(1 << 62, 1 << 62)),
    "zero-length input": (
        *("examples[0].input_tokens", "must have at least 1 token"),
        token_example(length=0),
    ),
    "more rows than input": (
        *("examples[0].target_offset", "at most -1 for 3 input tokens"),
        token_example(length=3),
    ),
    "rows beyond the input": (
        *("examples[0].target_offset", "at most 2 for 6 input tokens, got 3"),
        token_example(offset=3),
    ),
    "negative offset": (
        *("examples[0].target_offset", "must be at least 0"),
        token_example(offset=-1),
    ),
    "distribution for cross-entropy": (
        *("examples[0].targets", "must be token_targets for the objective cross_entropy"),
        distribution_example(),
    ),
    "no targets": ("examples[0].targets", "got None", NO_TARGETS),
    "advantages for cross-entropy": (
        *(f"{TARGETS}.advantages", "the objective cross_entropy does not"),
        token_example(advantages=np.ones(4)),
    ),
    "old log-probs for cross-entropy": (
        *(f"{TARGETS}.old_log_probs", "the objective cross_entropy does not"),
        token_example(old_log_probs=np.zeros(4)),
    ),
}

POLICY_ROWS = {
    "no advantages": ("advantages", "must be given", policy_example(advantages=None)),
    "no old log-probs": ("old_log_probs", "must be given", policy_example(old_log_probs=None)),
    "weights": ("weights", "does not use it", policy_example(weights=np.ones(4))),
    "advantages of another length": (
        *("advantages.shape", "[4], got [3]"),
        policy_example(advantages=np.ones(3)),
    ),
    "old log-probs of another rank": (
        *("old_log_probs.shape", "[4]"),
        policy_example(old_log_probs=-np.ones((4, 1))),
    ),
    "NaN advantage": (
        *("advantages", "must be finite, got nan"),
        policy_example(advantages=[1, np.nan, 1, 1]),
    ),
    "-inf old log-prob": (
        *("old_log_probs", "must be finite, got -inf"),
        policy_example(old_log_probs=[-1, -np.inf, 0, 0]),
    ),
    "NaN old log-prob": (
        *("old_log_probs", "must be finite, got nan"),
        policy_example(old_log_probs=[-1, np.nan, 0, 0]),
    ),
    "positive old log-prob": (
        *("old_log_probs", "got 0.5"),
        policy_example(old_log_probs=[-1, 0.5, 0, 0]),
    ),
}

DISTRIBUTION_ROWS = {
    "tokens for a distribution objective": (
        *("examples[0].targets", "must be distribution_targets for the objective tail_bucket"),
        token_example(),
    ),
    "no rows of a distribution": (
        *(f"{ROWS}.row_count", "must be at least 1, got 0"),
        distribution_example(row_count=0),
    ),
    "2^31 - 1 rows": (
        *(f"{ROWS}.row_count", "must be at most the 6 input"),
        distribution_example(row_count=2**31 - 1),
    ),
    "row 0": (
        *(f"{ROWS}.prompt_offset", "must be at least 1, got 0"),
        distribution_example(prompt_offset=0),
    ),
    "negative prompt": (
        *(f"{ROWS}.prompt_index", "must be at least 0, got -1"),
        distribution_example(prompt_index=-1),
    ),
    "row weights of another length": (
        *("examples[0].row_weights.shape", "must be [4]"),
        distribution_example(row_weights=[1.0]),
    ),
    "NaN row weight": (
        *("examples[0].row_weights", "must be finite"),
        distribution_example(row_weights=[1, 1, np.nan, 1.0]),
    ),
    "rows of a distribution beyond the input": (
        *("examples[0].target_offset", "at most 2 for 6 input tokens, got 3"),
        distribution_example(offset=3),
    ),
}

FLAT, DEEP = token_example((4,)), token_example((4, 1))
AFTER_THE_FIRST = "examples[1].token_targets.token_ids.shape"
MIXTURES = {
    "mixed 1-D then 2-D": ("must have 1 dimensions as in the examples before it", FLAT, DEEP),
    "mixed 2-D then 1-D": ("must have 2 dimensions as in the examples before it", DEEP, FLAT),
    "different K": (
        "K must be 3 as in the examples before it, got 2",
        *(token_example((4, 3)), token_example((4, 2))),
    ),
}

EXAMPLE_HAZARDS = {
    **{
        name: Hazard(request=TOKENS.but(example), field=field, problem=problem)
        for name, (field, problem, example) in TOKEN_ROWS.items()
    },
    **{
        name: Hazard(request=TOKENS.but(*examples), field=AFTER_THE_FIRST, problem=problem)
        for name, (problem, *examples) in MIXTURES.items()
    },
    **{
        name: Hazard(request=DISTRIBUTIONS.but(example), field=field, problem=problem)
        for name, (field, problem, example) in DISTRIBUTION_ROWS.items()
    },
    **{
        f"{name} for {policy}": Hazard(
            request=TOKENS.but(example, **objective(policy)),
            field=f"{TARGETS}.{field}",
            problem=problem,
        )
        for policy in ("importance_sampling", "ppo", "cispo")
        for name, (field, problem, example) in POLICY_ROWS.items()
    },
    **{
        f"distribution for {policy}": Hazard(
            request=TOKENS.but(distribution_example(), **objective(policy)),
            field="examples[0].targets",
            problem=f"must be token_targets for the objective {policy}",
        )
        for policy in ("importance_sampling", "ppo", "cispo")
    },
}
