"""Settings to messages."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from client.settings import (
    AdamW,
    BatchSettings,
    CheckpointWeights,
    DistributionExample,
    Example,
    LoraSettings,
    Normalization,
    Objective,
    PulledTargets,
    Reduction,
    SampledSupport,
    SamplingSettings,
    ScoredPrompt,
    Tokens,
    Weights,
    WeightsChoice,
)
from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2, tensor_pb2, training_pb2

_OBJECTIVES = {one: training_pb2.Objective.Value(f"OBJECTIVE_{one.name}") for one in Objective}

_REDUCTIONS = {
    Reduction.SUM: training_pb2.REDUCTION_SUM,
    Reduction.SEQUENCE_MEAN: training_pb2.REDUCTION_SEQUENCE_MEAN,
}

NORMALIZATIONS = {
    Normalization.NONE: training_pb2.GRADIENT_NORMALIZATION_NONE,
    Normalization.ROWS: training_pb2.GRADIENT_NORMALIZATION_ROWS,
    Normalization.EXAMPLES: training_pb2.GRADIENT_NORMALIZATION_EXAMPLES,
}


def encode_tokens(tokens: Tokens, field: str) -> tensor_pb2.Int32Tensor:
    """Encode the token ids of one sequence, [T].

    Raises:
        ValueError: not one-dimensional, not integers, or beyond int32; names the field.
    """
    return _encode_integers(np.asarray(tokens), field, ranks=(1,))


def _encode_integers(
    array: np.ndarray, field: str, ranks: tuple[int, ...]
) -> tensor_pb2.Int32Tensor:
    if array.ndim not in ranks:
        allowed = " or ".join(str(rank) for rank in ranks)
        raise ValueError(f"{field}: must have {allowed} dimensions, got shape {array.shape}")
    if array.size == 0:
        return tensor_pb2.Int32Tensor(shape=array.shape)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{field}: must hold integers, got {array.dtype}")
    # A cast to int32 would wrap around to a token id that looks right.
    bounds = np.iinfo(np.int32)
    if array.min() < bounds.min or array.max() > bounds.max:
        raise ValueError(f"{field}: must fit in int32, got {array.min()} to {array.max()}")
    return encode_int32(array)


def encode_scoring(
    prompts: Sequence[ScoredPrompt],
    top_k: int | None,
    temperature: float | None,
    sampled: SampledSupport | None = None,
) -> scoring_pb2.Scoring:
    """Encode what to score.

    Raises:
        ValueError: K both given and named by candidates, or neither; names the field.
    """
    with_candidates = [prompt.candidate_ids is not None for prompt in prompts]
    if any(with_candidates) and not all(with_candidates):
        raise ValueError("prompts: all must have candidate_ids, or none")
    names_candidates = any(with_candidates)
    if names_candidates and (top_k is not None or sampled is not None):
        raise ValueError("top_k, sampled: must be None where the prompts have candidate_ids")
    if not names_candidates and top_k is None:
        raise ValueError("top_k: must be given where the prompts have no candidate_ids")
    scoring = scoring_pb2.Scoring(
        prompts=[
            _encode_prompt(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)
        ],
        top_k=top_k or 0,
        temperature=temperature,
    )
    if names_candidates:
        scoring.candidates.SetInParent()
    if sampled is not None:
        scoring.sampled.CopyFrom(
            scoring_pb2.SampledSupport(exact_count=sampled.exact_count, seed=sampled.seed)
        )
    return scoring


def _encode_prompt(prompt: ScoredPrompt, field: str) -> scoring_pb2.ScoredPrompt:
    candidates = None
    if prompt.candidate_ids is not None:
        candidates = _encode_integers(
            np.asarray(prompt.candidate_ids), f"{field}.candidate_ids", ranks=(2,)
        )
    return scoring_pb2.ScoredPrompt(
        token_ids=encode_tokens(prompt.token_ids, field),
        score_from=prompt.score_from,
        candidate_ids=candidates,
    )


def encode_sampling(prompts: Iterable[Tokens], settings: SamplingSettings) -> scoring_pb2.Sampling:
    """Encode what to sample from and how."""
    return scoring_pb2.Sampling(
        prompts=[
            encode_tokens(prompt, f"prompts[{index}]") for index, prompt in enumerate(prompts)
        ],
        params=scoring_pb2.SamplingParams(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            stop_token_ids=settings.stop_token_ids,
            stop_strings=settings.stop_strings,
            ignore_end_tokens=settings.ignore_end_tokens,
            samples_per_prompt=settings.samples_per_prompt,
        ),
    )


def encode_run_config(lora: LoraSettings | None) -> training_pb2.RunConfig:
    """Encode what a run trains; None trains all weights."""
    if lora is None:
        return training_pb2.RunConfig(full=training_pb2.FullConfig())
    return training_pb2.RunConfig(
        lora=training_pb2.LoraConfig(
            rank=lora.rank,
            alpha=lora.alpha,
            target_modules=lora.target_modules,
            seed=lora.seed,
        )
    )


def encode_weights(weights: WeightsChoice) -> training_pb2.WeightsRef:
    """Encode which weights of a run to use."""
    if isinstance(weights, CheckpointWeights):
        return training_pb2.WeightsRef(checkpoint=weights.name)
    if weights is Weights.BASE:
        return training_pb2.WeightsRef(base=training_pb2.BaseWeights())
    return training_pb2.WeightsRef(current=training_pb2.CurrentWeights())


def encode_adamw(adamw: AdamW) -> training_pb2.AdamW:
    """Encode the settings of an optimizer step."""
    return training_pb2.AdamW(
        learning_rate=adamw.learning_rate,
        beta1=adamw.beta1,
        beta2=adamw.beta2,
        epsilon=adamw.epsilon,
        weight_decay=adamw.weight_decay,
        max_gradient_norm=adamw.max_gradient_norm,
    )


def encode_batch(
    settings: BatchSettings, example_count: int, pull: PulledTargets | None
) -> training_pb2.Batch:
    """Encode the header of a batch."""
    return training_pb2.Batch(
        objective=_OBJECTIVES[settings.objective],
        temperature=settings.temperature,
        reduction=_REDUCTIONS[settings.reduction],
        example_count=example_count,
        return_log_probs=settings.return_log_probs,
        return_row_losses=settings.return_row_losses,
        pull=None
        if pull is None
        else training_pb2.PulledScoring(
            teacher=pull.teacher,
            scoring=encode_scoring(pull.prompts, pull.top_k, pull.temperature, pull.sampled),
        ),
        jsd_beta=settings.jsd_beta,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
    )


def encode_example(example: Example, index: int) -> training_pb2.Example:
    """Encode one training sequence; `index` names it in errors."""
    field = f"examples[{index}]"
    encoded = training_pb2.Example(
        input_tokens=encode_tokens(example.input_tokens, f"{field}.input_tokens"),
        target_offset=example.target_offset,
    )
    if isinstance(example, DistributionExample):
        encoded.distribution_targets.CopyFrom(
            training_pb2.DistributionTargets(
                prompt_index=example.prompt_index,
                prompt_offset=example.prompt_offset,
                row_count=example.row_count,
            )
        )
        if example.row_weights is not None:
            encoded.row_weights.CopyFrom(encode_floats(np.asarray(example.row_weights)))
        return encoded
    encoded.token_targets.CopyFrom(
        training_pb2.TokenTargets(
            token_ids=_encode_integers(
                np.asarray(example.token_ids), f"{field}.token_ids", ranks=(1, 2)
            ),
            weights=_encode_optional(example.weights),
            advantages=_encode_optional(example.advantages),
            old_log_probs=_encode_optional(example.old_log_probs),
        )
    )
    return encoded


def _encode_optional(array: NDArray[np.floating] | None) -> tensor_pb2.FloatTensor | None:
    return None if array is None else encode_floats(np.asarray(array))
