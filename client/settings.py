"""What a caller says: the contract's own messages, and functions that make them from token lists.

A message is made with keywords, as in `AdamW(learning_rate=1e-3)`; the proto says what each field
means, and an optional field that is not given is the service's default. Values of enums are strings
such as "tail_bucket".
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from client.formatting import Tokens, format_floats, format_integers, format_tokens
from distill.enum_names import enum_names, enum_value
from distill.v1.scoring_pb2 import (
    CandidateSupport,
    SampledSupport,
    SamplingParams,
    ScoredPrompt,
    Scoring,
)
from distill.v1.training_pb2 import (
    AdamW,
    BaseWeights,
    Batch,
    DistributionTargets,
    Example,
    LoraConfig,
    Objective,
    PulledScoring,
    Reduction,
    TokenTargets,
    WeightsRef,
)

__all__ = [
    "DISTRIBUTION_OBJECTIVES",
    "OBJECTIVES",
    "AdamW",
    "Batch",
    "Example",
    "LoraConfig",
    "PulledScoring",
    "SampledSupport",
    "SamplingParams",
    "ScoredPrompt",
    "Scoring",
    "Tokens",
    "WeightsRef",
    "base_weights",
    "batch_settings",
    "check_distribution_objective",
    "distribution_example",
    "pulled_targets",
    "scored_prompt",
    "scored_prompts",
    "scoring",
    "token_example",
    "with_candidates",
]

OBJECTIVES = enum_names(Objective)
"""What a batch can minimise; docs/objectives.md derives the fixed points."""

DISTRIBUTION_OBJECTIVES = (
    "renormalized",
    "truncated",
    "support",
    "tail_bucket",
    "reverse_support",
    "reverse_truncated",
    "reverse_tail_bucket",
    "jsd",
)
"""Those that a teacher's distributions on the top K, or on candidates, are enough for."""


def check_distribution_objective(name: str) -> None:
    """Raises ValueError unless a teacher's distributions are enough for the objective."""
    if name not in DISTRIBUTION_OBJECTIVES:
        allowed = ", ".join(DISTRIBUTION_OBJECTIVES)
        raise ValueError(f"objective: must be one of {allowed}, got {name!r}")


def batch_settings(
    objective: str = "tail_bucket", *, reduction: str = "sum", **fields: Any
) -> Batch:
    """What a batch minimises and what comes back.

    Args:
        objective: one of OBJECTIVES.
        reduction: how the rows of an example add up, "sum" or "sequence_mean".
        fields: further fields of the message `Batch`, such as `temperature`, `jsd_beta` and
            `return_log_probs`; not those that a run fills in, `example_count` and `pull`.

    Raises:
        ValueError: an objective or a reduction with another name, or no such field.
    """
    for name in ("example_count", "pull"):
        if name in fields:
            raise ValueError(f"{name}: the run fills it in, from its own arguments")
    return Batch(
        objective=enum_value(Objective, objective, "objective"),
        reduction=enum_value(Reduction, reduction, "reduction"),
        **fields,
    )


def base_weights() -> WeightsRef:
    """The base model's weights; those of a checkpoint are `WeightsRef(checkpoint=NAME)`."""
    return WeightsRef(base=BaseWeights())


def scored_prompt(
    token_ids: Tokens,
    *,
    score_from: int | None = None,
    candidate_ids: ArrayLike | None = None,
    field: str = "prompt",
) -> ScoredPrompt:
    """One prompt to score.

    Args:
        token_ids: [T].
        score_from: first row wanted, in [1, T); row i is the distribution over token i. None: 1.
        candidate_ids: the support of each row, [T - score_from, K], no token twice in a row. All
            prompts of a request name candidates, with one K, or none does. None: the service
            chooses the support.
        field: its name, for errors.

    Raises:
        ValueError: an array of a wrong rank, that holds no integers, or beyond int32.
    """
    prompt = ScoredPrompt(token_ids=format_tokens(token_ids, field), score_from=score_from)
    return prompt if candidate_ids is None else with_candidates(prompt, candidate_ids, field=field)


def with_candidates(
    prompt: ScoredPrompt, candidate_ids: ArrayLike, *, field: str = "prompt"
) -> ScoredPrompt:
    """The prompt with the support of each of its rows, [T - score_from, K].

    Raises:
        ValueError: candidates that are not of two dimensions, no integers, or beyond int32.
    """
    named = ScoredPrompt()
    named.CopyFrom(prompt)
    named.candidate_ids.CopyFrom(
        format_integers(candidate_ids, f"{field}.candidate_ids", ranks=(2,))
    )
    return named


def scored_prompts(
    prompts: Sequence[Tokens | ScoredPrompt], score_from: int | Sequence[int] | None = None
) -> list[ScoredPrompt]:
    """The prompts with the first row wanted of each.

    Args:
        prompts: token ids, [T] each, or prompts that already say it.
        score_from: one row for all the prompts or one for each. None: what the prompts say.

    Raises:
        ValueError: another number of rows than of prompts, both ways at once, or token ids that
            cannot be sent; names the prompt.
    """
    if score_from is None or isinstance(score_from, int):
        first_rows: Sequence[int | None] = [score_from] * len(prompts)
    else:
        first_rows = score_from
    if len(first_rows) != len(prompts):
        raise ValueError(
            f"score_from: must have one row per prompt ({len(prompts)}), got {len(first_rows)}"
        )
    scored = []
    for index, (prompt, first_row) in enumerate(zip(prompts, first_rows, strict=True)):
        if not isinstance(prompt, ScoredPrompt):
            prompt = scored_prompt(prompt, score_from=first_row, field=f"prompts[{index}]")
        elif first_row is not None:
            raise ValueError("score_from: the prompts say it already")
        scored.append(prompt)
    return scored


def scoring(
    prompts: Sequence[Tokens | ScoredPrompt],
    top_k: int | None = None,
    *,
    temperature: float | None = None,
    score_from: int | Sequence[int] | None = None,
    sampled: SampledSupport | None = None,
) -> Scoring:
    """What to score and how. `client.model.Model.stream_top_k` says what the arguments are.

    Raises:
        ValueError: K both given and named by candidates, or neither; names the field. Or prompts
            that `scored_prompts` refuses.
    """
    scored = scored_prompts(prompts, score_from)
    with_candidates = [prompt.HasField("candidate_ids") for prompt in scored]
    names_candidates = any(with_candidates)
    if names_candidates and not all(with_candidates):
        raise ValueError("prompts: all must have candidate_ids, or none")
    if names_candidates and (top_k is not None or sampled is not None):
        raise ValueError("top_k, sampled: must be None where the prompts have candidate_ids")
    if not names_candidates and top_k is None:
        raise ValueError("top_k: must be given where the prompts have no candidate_ids")
    return Scoring(
        prompts=scored,
        top_k=top_k or 0,
        temperature=temperature,
        candidates=CandidateSupport() if names_candidates else None,
        sampled=sampled,
    )


def pulled_targets(
    teacher: str,
    prompts: Sequence[Tokens | ScoredPrompt],
    top_k: int | None = None,
    *,
    temperature: float | None = None,
    sampled: SampledSupport | None = None,
) -> PulledScoring:
    """Distributions that the student asks a teacher for by itself; the client sends none.

    Args:
        teacher: name of a teacher that the student was started with.
        prompts: what the teacher scores; examples name a prompt by its index.
        top_k: K. None: the prompts name their candidates.
        temperature: divides the teacher's logits. None: 1.
        sampled: draw the support. None: the K most probable tokens, or the candidates.

    Raises:
        ValueError: as `scoring`.
    """
    asked = scoring(prompts, top_k, temperature=temperature, sampled=sampled)
    return PulledScoring(teacher=teacher, scoring=asked)


def distribution_example(
    input_tokens: Tokens,
    *,
    target_offset: int,
    prompt_index: int,
    prompt_offset: int,
    row_count: int,
    row_weights: ArrayLike | None = None,
) -> Example:
    """A training sequence whose targets are a teacher's distributions.

    Prompt row `prompt_offset + j` of the teacher is the target of the student's target row
    `target_offset + j`, the distribution over the token that follows that position. The two
    prefixes may differ in length.

    Args:
        input_tokens: the student's input, [T].
        target_offset: first target row, in [0, T).
        prompt_index: index of the scored prompt.
        prompt_offset: first row of the prompt, at least 1.
        row_count: N, the number of rows; target_offset + N <= T.
        row_weights: weight of each row's loss, [N]. None: 1 everywhere.

    Raises:
        ValueError: input tokens that cannot be sent.
    """
    return Example(
        input_tokens=format_tokens(input_tokens, "input_tokens"),
        target_offset=target_offset,
        distribution_targets=DistributionTargets(
            prompt_index=prompt_index, prompt_offset=prompt_offset, row_count=row_count
        ),
        row_weights=format_floats(row_weights),
    )


def token_example(
    input_tokens: Tokens,
    *,
    target_offset: int,
    token_ids: ArrayLike,
    weights: ArrayLike | None = None,
    advantages: ArrayLike | None = None,
    old_log_probs: ArrayLike | None = None,
) -> Example:
    """A training sequence whose targets are named tokens.

    With weights for cross_entropy; with advantages and old log-probs for importance_sampling, ppo
    and cispo.

    Args:
        input_tokens: the student's input, [T].
        target_offset: first target row, in [0, T).
        token_ids: target ids, [N] or [N, K].
        weights: of any sign, of the same shape. None: 1 everywhere.
        advantages: of any sign, of the same shape.
        old_log_probs: the log-probs with which the tokens were sampled, of the same shape.

    Raises:
        ValueError: input tokens or target ids that cannot be sent.
    """
    return Example(
        input_tokens=format_tokens(input_tokens, "input_tokens"),
        target_offset=target_offset,
        token_targets=TokenTargets(
            token_ids=format_integers(token_ids, "token_ids", ranks=(1, 2)),
            weights=format_floats(weights),
            advantages=format_floats(advantages),
            old_log_probs=format_floats(old_log_probs),
        ),
    )
