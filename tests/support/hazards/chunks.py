"""Hazards of the teacher's chunks: their values, and the rows that they tile."""

from typing import Any

import numpy as np

from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2
from tests.support.hazards.hazard import (
    DISTRIBUTIONS,
    DRAWS,
    MAX_TOP_K,
    VOCAB,
    Hazard,
    objective,
)
from tests.support.training_messages import (
    changed_chunk,
    distribution_example,
    make_chunks,
    sampled_chunk,
    without,
)

_, (IDS, LOG_PROBS, TAILS, ENTROPIES) = make_chunks(row_count=2)


def with_first(array: Any, value: float) -> Any:
    """The array, encoded, with another first value."""
    array = array.copy()
    array.flat[0] = value
    return encode_int32(array) if array.dtype == np.int32 else encode_floats(array)


def of_support(token_ids: Any) -> dict[str, Any]:
    """Other tokens, and log-probs of their shape beside them."""
    log_probs = encode_floats(np.full(token_ids.shape, -2.0))
    return {"token_ids": encode_int32(token_ids), "log_probs": log_probs}


VALUES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "negative prompt of a chunk": ("prompt_index", "at least 0", {"prompt_index": -1}),
    "row 0 in a chunk": ("first_row", "at least 1", {"first_row": 0}),
    "id beyond V in a chunk": (
        *("token_ids", f"must be in [0, {VOCAB})"),
        {"token_ids": with_first(IDS, VOCAB)},
    ),
    "negative id in a chunk": (
        *("token_ids", f"must be in [0, {VOCAB})"),
        {"token_ids": with_first(IDS, -1)},
    ),
    "id twice in a row": (
        *("token_ids", "name a token twice, got 7 again"),
        {"token_ids": encode_int32(np.full((2, 4), 7))},
    ),
    "K 0 in a chunk": ("token_ids.shape", f"K in [1, {MAX_TOP_K}]", of_support(IDS[:, :0])),
    "K over the limit in a chunk": (
        *("token_ids.shape", f"K in [1, {MAX_TOP_K}]"),
        of_support(np.arange(18).reshape(2, 9)),
    ),
    "one dimension in a chunk": (
        *("token_ids.shape", "must have 2 dimensions"),
        {"token_ids": encode_int32(IDS[0])},
    ),
    "log-probs of another shape": (
        *("log_probs.shape", "must be [2, 4] with"),
        {"log_probs": encode_floats(LOG_PROBS[:1])},
    ),
    "NaN log-prob": ("log_probs", "got nan", {"log_probs": with_first(LOG_PROBS, np.nan)}),
    "inf log-prob": ("log_probs", "got inf", {"log_probs": with_first(LOG_PROBS, np.inf)}),
    "-inf log-prob": ("log_probs", "got -inf", {"log_probs": with_first(LOG_PROBS, -np.inf)}),
    "positive log-prob": ("log_probs", "at most", {"log_probs": with_first(LOG_PROBS, 0.01)}),
    "log-probs of another normalisation": (
        *("log_probs", "normalised over the full vocabulary"),
        {"log_probs": encode_floats(LOG_PROBS - 2)},
    ),
    "NaN tail": ("tail_log_probs", "got nan", {"tail_log_probs": with_first(TAILS, np.nan)}),
    "positive tail": ("tail_log_probs", "got 1", {"tail_log_probs": with_first(TAILS, 1.0)}),
    "tails of another length": (
        *("tail_log_probs.shape", ""),
        {"tail_log_probs": encode_floats(TAILS[:1])},
    ),
    "NaN entropy": (
        *("entropies", "must be finite and at least 0, got nan"),
        {"entropies": with_first(ENTROPIES, np.nan)},
    ),
    "negative entropy": (
        *("entropies", "must be finite and at least 0, got -0.5"),
        {"entropies": with_first(ENTROPIES, -0.5)},
    ),
    "NaN log-prob of the prompt": (
        *("prompt_log_probs", "must be finite and at most 0.001, got nan"),
        {"prompt_log_probs": with_first(TAILS, np.nan)},
    ),
    "positive log-prob of the prompt": (
        *("prompt_log_probs", "must be finite and at most 0.001, got 0.5"),
        {"prompt_log_probs": with_first(TAILS, 0.5)},
    ),
    "no tail for tail_bucket": (
        *("tail_log_probs", "must be given for the objective tail_bucket"),
        {"tail_log_probs": None},
    ),
}

# The second row of each is fine.
DRAW_WEIGHTS = {
    "id drawn twice": ("token_ids", "not name a token twice", (0.5, 0.25, 0.25, 0)),
    "draw weights of 1.25": ("draw_weights", "within 0.01, got 1.25", (0.5, 0.25, 0, 0.5)),
    "draw weights of 0": ("draw_weights", "within 0.01, got 0", (0, 0, 0, 0)),
    "negative draw weight": ("draw_weights", "at least 0, got -0.5", (1.5, -0.5, 0, 0)),
    "NaN draw weight": ("draw_weights", "must be finite", (np.nan, 0.5, 0, 0.5)),
    "infinite draw weight": ("draw_weights", "must be finite", (np.inf, 0.5, 0, 0.5)),
}

CUT, _ = make_chunks(cuts=(4, 8))
OTHER_K, _ = make_chunks(prompt_index=1, support_size=3)
TILINGS: dict[str, tuple[str, str, list[scoring_pb2.TopKChunk]]] = {
    "distribution without chunks": (
        *("examples[0].distribution_targets.prompt_index", "no chunk describes prompt 0"),
        [],
    ),
    "chunk twice": ("chunks.first_row", "must be tiled exactly once", [CUT[0], CUT[1], CUT[1]]),
    "gap between chunks": ("chunks.first_row", "must be tiled exactly once", [CUT[0], CUT[2]]),
    "log-probs of the prompt in some chunks of it": (
        *("chunks[1].prompt_log_probs", "of prompt 0 must have it, or none: it is absent here"),
        [CUT[0], without(CUT[1], "prompt_log_probs"), CUT[2]],
    ),
    "entropies in some chunks of a prompt": (
        *("chunks[2].entropies", "of prompt 0 must have it, or none: it is here and was not"),
        [*(without(chunk, "entropies") for chunk in CUT[:2]), CUT[2]],
    ),
    "different K in chunks": (
        *("chunks[1].token_ids.shape", "K must be 4 as in the chunks before it, got 3"),
        [changed_chunk(), *OTHER_K],
    ),
}

HEAVY = changed_chunk(log_probs=encode_floats(np.full((2, 4), np.log(0.6))), tail_log_probs=None)

ROWS = "examples[0].distribution_targets"
UNDESCRIBED = {
    f"rows [{first}, {first + count}) of chunks with [3, 5)": (first, count)
    for first, count in ((2, 2), (3, 3), (4, 2), (5, 1), (1, 1))
}

CHUNK_HAZARDS = {
    **{
        name: Hazard(
            request=DISTRIBUTIONS.but(chunks=(changed_chunk(**change),)),
            field=f"chunks[0].{field}",
            problem=problem,
        )
        for name, (field, problem, change) in VALUES.items()
    },
    **{
        name: Hazard(
            request=DRAWS.but(chunks=(sampled_chunk(weights=(row, (1, 0, 0, 0))),)),
            field=f"chunks[0].{field}",
            problem=problem,
        )
        for name, (field, problem, row) in DRAW_WEIGHTS.items()
    },
    "draw weights of another shape": Hazard(
        request=DRAWS.but(chunks=(sampled_chunk(weights=((0.5, 0.5), (1, 0))),)),
        field="chunks[0].draw_weights.shape",
        problem="[2, 4], got [2, 2]",
    ),
    "draw weights of one dimension": Hazard(
        request=DRAWS.but(chunks=(sampled_chunk(weights=(1.0, 1.0)),)),
        field="chunks[0].draw_weights.shape",
        problem="must have 2 dimensions",
    ),
    **{
        name: Hazard(request=DISTRIBUTIONS.but(chunks=tuple(chunks)), field=field, problem=problem)
        for name, (field, problem, chunks) in TILINGS.items()
    },
    **{
        name: Hazard(
            request=DISTRIBUTIONS.but(distribution_example(prompt_offset=first, row_count=count)),
            field=f"{ROWS}.prompt_offset",
            problem="its chunks describe [3, 5)",
        )
        for name, (first, count) in UNDESCRIBED.items()
    },
    "a tail in some chunks of a prompt": Hazard(
        request=DISTRIBUTIONS.but(
            chunks=(CUT[0], without(CUT[1], "tail_log_probs")), **objective("renormalized")
        ),
        field="chunks[1].tail_log_probs",
        problem="of prompt 0 must have it, or none: it is absent here and was in those before",
    ),
    "support above 1 without a tail": Hazard(
        request=DISTRIBUTIONS.but(chunks=(HEAVY,), **objective("renormalized")),
        field="chunks[0].log_probs",
        problem="must add up to at most 1 within 0.01, got 2.4",
    ),
    "prompt that no chunk describes": Hazard(
        request=DISTRIBUTIONS.but(distribution_example(row_count=2, prompt_index=9)),
        field=f"{ROWS}.prompt_index",
        problem="no chunk describes prompt 9",
    ),
}
