"""One hazard, and the good requests that hazards change in one place."""

from dataclasses import dataclass, field, replace
from typing import Any

from distill.v1 import scoring_pb2, training_pb2
from tests.support.training_messages import (
    changed_chunk,
    distribution_example,
    policy_example,
    sampled_chunk,
    token_example,
)

VOCAB = 512
"""Of the tiny model."""

MAX_TOP_K = 8
"""The limit that hazards of a large K exceed."""


def objective(name: str) -> dict[str, Any]:
    """The field of a batch that names it."""
    return {"objective": training_pb2.Objective.Value(f"OBJECTIVE_{name.upper()}")}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a ForwardBackward stream brings."""

    examples: tuple[training_pb2.Example, ...]
    """In order."""

    chunks: tuple[scoring_pb2.TopKChunk, ...] = ()
    """Relayed after the examples."""

    batch: dict[str, Any] = field(default_factory=dict)
    """Fields of the header's batch."""

    def but(
        self,
        *examples: training_pb2.Example,
        chunks: tuple[scoring_pb2.TopKChunk, ...] | None = None,
        **batch: Any,
    ) -> "Request":
        """The same with other examples, other chunks, or further fields of the batch."""
        return replace(
            self,
            examples=examples or self.examples,
            chunks=self.chunks if chunks is None else chunks,
            batch=self.batch | batch,
        )


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """A request that is wrong in one place, and the error that says so."""

    request: Request
    """The wrong request."""

    field: str
    """The field that the error names."""

    problem: str
    """A part of what the error says of the field."""


TOKENS = Request(examples=(token_example(),), batch=objective("cross_entropy"))
POLICY = Request(examples=(policy_example(),), batch=objective("ppo"))
DISTRIBUTIONS = Request(
    examples=(distribution_example(row_count=2),),
    chunks=(changed_chunk(),),
    batch=objective("tail_bucket"),
)
DRAWS = Request(
    examples=(distribution_example(row_count=2, prompt_offset=1),),
    chunks=(sampled_chunk(),),
    batch=objective("sampled"),
)
GOOD_REQUESTS = {
    "tokens": TOKENS,
    "policy": POLICY,
    "distributions": DISTRIBUTIONS,
    "draws": DRAWS,
}
