"""Parses requests into checked values, which nothing below checks again. Examples and chunks have
files of their own: `examples`, `chunks`.

Everything that can be known without the run's state is checked before any compute. An error names
the field, the limit and the value.
"""

from dataclasses import MISSING, fields

import numpy as np

from distill.enum_names import enum_name
from distill.errors import InvalidFieldError
from distill.limits import RequestLimits
from distill.network.adapters import LoraSpec, check_targets, layer_targets, model_targets
from distill.network.config import ModelConfig
from distill.ops.objectives import OBJECTIVES, ObjectiveSpec
from distill.rpc.checks import check_limit, check_range, check_temperature
from distill.v1 import training_pb2
from student_service.runs.names import parse_name
from student_service.training.batch import LossSettings
from student_service.training.optimizer import ABOVE_0, AdamWSettings, Interval

MAX_LORA_RANK = 1024
"""Bounds the memory that a request can ask for. Adapters in use have far smaller ranks."""


def check_mutation(mutation: training_pb2.Mutation, field: str = "mutation") -> None:
    """Raise InvalidFieldError for a bad name or a number below 1."""
    parse_name(mutation.run_id, f"{field}.run_id")
    for name in ("writer_epoch", "sequence_number"):
        if getattr(mutation, name) < 1:
            raise InvalidFieldError(
                f"{field}.{name}", f"must be at least 1, got {getattr(mutation, name)}"
            )


def parse_run_config(config: training_pb2.RunConfig, model: ModelConfig) -> LoraSpec | None:
    """The adapter to train, or None for all weights.

    Args:
        config: as it came.
        model: says which modules can have an adapter.

    Raises:
        InvalidFieldError: nothing chosen, or a bad rank, alpha or target module.
    """
    if config.WhichOneof("trainable") is None:
        raise InvalidFieldError("config.trainable", "must be lora or full, got neither")
    if config.HasField("full"):
        return None
    lora = config.lora
    check_range("config.lora.rank", lora.rank, 1, MAX_LORA_RANK)
    alpha = lora.alpha if lora.HasField("alpha") else 2.0 * lora.rank
    _check_interval("config.lora.alpha", alpha, ABOVE_0)
    check_targets(model, lora.target_modules, "config.lora.target_modules")
    # In the model's order: the same modules named in another order are the same configuration.
    chosen = set(lora.target_modules) or set(layer_targets(model))
    return LoraSpec(
        rank=lora.rank,
        alpha=alpha,
        target_modules=tuple(target for target in model_targets(model) if target in chosen),
        seed=lora.seed,
    )


def parse_adamw(adamw: training_pb2.AdamW) -> AdamWSettings:
    """The settings of a step.

    Raises:
        InvalidFieldError: a setting outside its interval.
    """
    values: dict[str, float] = {}
    for each in fields(AdamWSettings):
        if not adamw.HasField(each.name):  # type: ignore[arg-type] # equal names
            if each.default is MISSING:
                raise InvalidFieldError(f"adamw.{each.name}", "must be given")
            if each.default is not None:
                # As a field holds it, so that the default that is spelled out is the same setting.
                values[each.name] = float(np.float32(each.default))
            continue
        value = getattr(adamw, each.name)
        _check_interval(f"adamw.{each.name}", value, each.metadata["interval"])
        values[each.name] = value
    return AdamWSettings(**values)


def parse_loss(batch: training_pb2.Batch, limits: RequestLimits) -> LossSettings:
    """What a batch minimises, from its header.

    Raises:
        InvalidFieldError: a bad field of the header.
        LimitExceededError: too many examples.
    """
    if batch.objective not in training_pb2.Objective.values() or not batch.objective:
        names = ", ".join(training_pb2.Objective.keys()[1:])
        raise InvalidFieldError(
            "header.batch.objective", f"must be one of {names}, got {batch.objective}"
        )
    name = enum_name(training_pb2.Objective, batch.objective)
    temperature = batch.temperature if batch.HasField("temperature") else 1.0
    check_temperature("header.batch.temperature", temperature)
    if batch.reduction not in training_pb2.Reduction.values():
        raise InvalidFieldError(
            "header.batch.reduction",
            f"must be one of {', '.join(training_pb2.Reduction.keys())}, got {batch.reduction}",
        )
    if batch.example_count < 1:
        raise InvalidFieldError(
            "header.batch.example_count", f"must be at least 1, got {batch.example_count}"
        )
    check_limit("header.batch.example_count", batch.example_count, limits.max_sequences)
    spec = OBJECTIVES[name]
    clip_low, clip_high = _parse_clips(batch, spec)
    return LossSettings(
        objective=name,
        temperature=temperature,
        sequence_mean=batch.reduction == training_pb2.REDUCTION_SEQUENCE_MEAN,
        beta=_parse_beta(batch, spec),
        clip_low=clip_low,
        clip_high=clip_high,
    )


def _parse_beta(batch: training_pb2.Batch, spec: ObjectiveSpec) -> float:
    if not batch.HasField("jsd_beta"):
        return LossSettings.beta
    if not spec.uses_beta:
        raise InvalidFieldError(
            "header.batch.jsd_beta", f"the objective {spec.name} does not use it"
        )
    # This refuses NaN too.
    if not 0 <= batch.jsd_beta <= 1:
        raise InvalidFieldError(
            "header.batch.jsd_beta", f"must be in [0, 1], got {batch.jsd_beta:g}"
        )
    return batch.jsd_beta


def _parse_clips(batch: training_pb2.Batch, spec: ObjectiveSpec) -> tuple[float, float]:
    given = [name for name in ("clip_low", "clip_high") if batch.HasField(name)]
    if spec.default_clips is None:
        if given:
            raise InvalidFieldError(
                f"header.batch.{given[0]}", f"the objective {spec.name} does not use it"
            )
        return LossSettings.clip_low, LossSettings.clip_high
    for name in given:
        value = getattr(batch, name)
        if not (np.isfinite(value) and value >= 0):
            raise InvalidFieldError(
                f"header.batch.{name}", f"must be finite and at least 0, got {value:g}"
            )
    # Rounded to float32 as the fields are, so that a bound given as 0.8 equals the default of 0.8.
    low, high = (float(np.float32(bound)) for bound in spec.default_clips)
    low = batch.clip_low if batch.HasField("clip_low") else low
    high = batch.clip_high if batch.HasField("clip_high") else high
    if low > high:
        raise InvalidFieldError(
            "header.batch.clip_low", f"must be at most clip_high, which is {high:g}, got {low:g}"
        )
    return low, high


def _check_interval(field: str, value: float, interval: Interval) -> None:
    if not interval.holds(value):
        raise InvalidFieldError(field, f"must be {interval.description}, got {value}")


def parse_normalization(normalization: int) -> str:
    """The name of a normalization: "none", "rows" or "examples".

    Raises:
        InvalidFieldError: an unknown value.
    """
    names = {int(value): name for name, value in training_pb2.GradientNormalization.items()}
    if normalization not in names:
        known = ", ".join(names.values())
        raise InvalidFieldError("normalization", f"must be one of {known}, got {normalization}")
    return enum_name(training_pb2.GradientNormalization, normalization) if normalization else "none"
