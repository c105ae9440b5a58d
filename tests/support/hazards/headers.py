"""Hazards of a stream: what its header says, and the parts that follow it."""

from typing import Any

from tests.support.hazards.hazard import TOKENS, Hazard, objective
from tests.support.training_messages import changed_chunk, token_example

NAN, INF = float("nan"), float("inf")

# Objective → the changed field, its value, and what the error says of it.
SETTINGS: list[tuple[str, str, Any, str]] = [
    ("cross_entropy", "objective", 0, ""),
    ("cross_entropy", "objective", 77, ""),
    ("cross_entropy", "temperature", 0.0, "got 0"),
    ("cross_entropy", "temperature", -1.0, "got -1"),
    ("cross_entropy", "temperature", NAN, "got nan"),
    ("cross_entropy", "reduction", 9, ""),
    ("cross_entropy", "example_count", 0, ""),
    ("cross_entropy", "example_count", -1, ""),
    ("jsd", "jsd_beta", 1.01, "got 1.01"),
    ("jsd", "jsd_beta", -0.5, "got -0.5"),
    ("jsd", "jsd_beta", NAN, "got nan"),
    ("tail_bucket", "jsd_beta", 0.5, "the objective tail_bucket does not use it"),
    ("ppo", "clip_low", 1.5, "must be at most clip_high, which is 1.2"),
    ("ppo", "clip_low", -0.1, "must be finite and at least 0"),
    ("cispo", "clip_low", 5.0, "must be at most clip_high, which is 4"),
    ("cispo", "clip_high", INF, "must be finite"),
    ("cispo", "clip_high", NAN, "must be finite"),
    ("importance_sampling", "clip_high", 2.0, "the objective importance_sampling does not use it"),
    ("jsd", "clip_low", 0.0, "the objective jsd does not use it"),
]

HEADER_HAZARDS = {
    **{
        f"{field} {value} for {name}": Hazard(
            request=TOKENS.but(**objective(name) | {field: value}),
            field=f"header.batch.{field}",
            problem=problem,
        )
        for name, field, value, problem in SETTINGS
    },
    "fewer examples than said": Hazard(
        request=TOKENS.but(example_count=2),
        field="part",
        problem="the header says 2 examples, got end after 1",
    ),
    "more examples than said": Hazard(
        request=TOKENS.but(token_example(), token_example(), example_count=1),
        field="part",
        problem="only chunks and the end follow the 1 examples, got example",
    ),
    "chunks nobody asked for": Hazard(
        request=TOKENS.but(chunks=(changed_chunk(),)),
        field="chunks[0]",
        problem="the examples name their tokens",
    ),
}
