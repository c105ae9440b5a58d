"""Requests into checked values. Whatever passes here is trusted below.

Everything that can be known without the run's state is checked before any compute, and names the
field, the limit and the value.
"""

import re
from dataclasses import dataclass

import numpy as np

from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.models.adapters import ADAPTER_TARGETS, LoraSpec
from distill.ops.objectives import OBJECTIVES
from distill.tensors import FloatArray, Int32Array, decode_floats, decode_int32
from distill.v1 import training_pb2
from student_service.batch import LossSettings
from student_service.trainer import AdamWSettings

MAX_LORA_RANK = 1024
"""Beyond this an adapter is larger than the weights of any model it would adapt."""

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


def parse_name(name: str, field: str) -> str:
    """A run's or checkpoint's name: it becomes a directory name.

    Raises:
        InvalidFieldError: not 1 to 64 of [A-Za-z0-9._-], or a leading dot.
    """
    # fullmatch: `$` would let a trailing newline pass.
    if not _NAME.fullmatch(name):
        raise InvalidFieldError(
            field, f"must be 1 to 64 of [A-Za-z0-9._-] without a leading dot, got {name[:80]!r}"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class MutationHeader:
    """The exactly-once header."""

    run_id: str
    """Name of the run."""

    writer_epoch: int
    """Epoch the writer was given."""

    sequence_number: int
    """From 1."""


def parse_mutation(mutation: training_pb2.Mutation, field: str = "mutation") -> MutationHeader:
    """Raises InvalidFieldError for a bad name or a number below 1."""
    parse_name(mutation.run_id, f"{field}.run_id")
    for name in ("writer_epoch", "sequence_number"):
        if getattr(mutation, name) < 1:
            raise InvalidFieldError(
                f"{field}.{name}", f"must be at least 1, got {getattr(mutation, name)}"
            )
    return MutationHeader(
        run_id=mutation.run_id,
        writer_epoch=mutation.writer_epoch,
        sequence_number=mutation.sequence_number,
    )


def parse_run_config(config: training_pb2.RunConfig) -> LoraSpec | None:
    """The adapter to train, or None for all weights.

    Raises:
        InvalidFieldError: nothing chosen, or a bad rank, alpha or target module.
    """
    if config.WhichOneof("trainable") is None:
        raise InvalidFieldError("config.trainable", "must be lora or full, got neither")
    if config.HasField("full"):
        return None
    lora = config.lora
    if not 1 <= lora.rank <= MAX_LORA_RANK:
        raise InvalidFieldError(
            "config.lora.rank", f"must be in [1, {MAX_LORA_RANK}], got {lora.rank}"
        )
    alpha = lora.alpha if lora.HasField("alpha") else 2.0 * lora.rank
    _check_positive(alpha, "config.lora.alpha")
    for target in lora.target_modules:
        if target not in ADAPTER_TARGETS:
            raise InvalidFieldError(
                "config.lora.target_modules",
                f"must be among {', '.join(ADAPTER_TARGETS)}, got {target!r}",
            )
    # In the order of a layer, so that the same set is the same configuration.
    chosen = set(lora.target_modules) or set(ADAPTER_TARGETS)
    return LoraSpec(
        rank=lora.rank,
        alpha=alpha,
        target_modules=tuple(target for target in ADAPTER_TARGETS if target in chosen),
        seed=lora.seed,
    )


def parse_adamw(adamw: training_pb2.AdamW) -> AdamWSettings:
    """Raises InvalidFieldError for a setting outside its range."""
    defaults = AdamWSettings(learning_rate=adamw.learning_rate)
    if not (np.isfinite(adamw.learning_rate) and adamw.learning_rate >= 0):
        raise InvalidFieldError(
            "adamw.learning_rate", f"must be finite and at least 0, got {adamw.learning_rate}"
        )
    betas = {}
    for name in ("beta1", "beta2"):
        value = getattr(adamw, name) if adamw.HasField(name) else getattr(defaults, name)
        if not 0 <= value < 1:
            raise InvalidFieldError(f"adamw.{name}", f"must be in [0, 1), got {value}")
        betas[name] = value
    epsilon = adamw.epsilon if adamw.HasField("epsilon") else defaults.epsilon
    _check_positive(epsilon, "adamw.epsilon")
    weight_decay = adamw.weight_decay
    if not (np.isfinite(weight_decay) and weight_decay >= 0):
        raise InvalidFieldError(
            "adamw.weight_decay", f"must be finite and at least 0, got {weight_decay}"
        )
    clip = adamw.max_gradient_norm if adamw.HasField("max_gradient_norm") else None
    if clip is not None:
        _check_positive(clip, "adamw.max_gradient_norm")
    return AdamWSettings(
        learning_rate=adamw.learning_rate,
        beta1=betas["beta1"],
        beta2=betas["beta2"],
        epsilon=epsilon,
        weight_decay=weight_decay,
        max_gradient_norm=clip,
    )


def parse_loss(batch: training_pb2.Batch, limits: RequestLimits) -> LossSettings:
    """Raises InvalidFieldError or LimitExceededError for a bad `Batch` header."""
    known = training_pb2.Objective.keys()
    if batch.objective not in training_pb2.Objective.values() or not batch.objective:
        names = ", ".join(known[1:])
        raise InvalidFieldError("batch.objective", f"must be one of {names}, got {batch.objective}")
    name = training_pb2.Objective.Name(batch.objective).removeprefix("OBJECTIVE_").lower()
    temperature = batch.temperature if batch.HasField("temperature") else 1.0
    _check_positive(temperature, "batch.temperature")
    if batch.reduction not in training_pb2.Reduction.values():
        raise InvalidFieldError(
            "batch.reduction",
            f"must be one of {', '.join(training_pb2.Reduction.keys())}, got {batch.reduction}",
        )
    if batch.example_count < 1:
        raise InvalidFieldError(
            "batch.example_count", f"must be at least 1, got {batch.example_count}"
        )
    if batch.example_count > limits.max_sequences:
        raise LimitExceededError("batch.example_count", limits.max_sequences, batch.example_count)
    return LossSettings(
        objective=name,
        temperature=temperature,
        sequence_mean=batch.reduction == training_pb2.REDUCTION_SEQUENCE_MEAN,
    )


@dataclass(frozen=True, kw_only=True)
class NamedTokens:
    """Targets given by the caller."""

    token_ids: Int32Array
    """[N, K]."""

    weights: FloatArray
    """[N, K]."""

    hard: bool
    """Came with shape (N,)."""


@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """Targets that are rows of a scored prompt."""

    prompt_index: int
    """Which prompt."""

    prompt_offset: int
    """Its first row."""

    row_count: int
    """N."""

    row_weights: FloatArray
    """[N]."""


@dataclass(frozen=True, kw_only=True)
class CheckedExample:
    """An example whose own fields are right."""

    input_tokens: Int32Array
    """[T]."""

    target_offset: int
    """First target row."""

    targets: NamedTokens | PromptRows
    """Where the targets come from."""


class ExampleParser:
    """Checks the examples of a batch one by one, each also against those before it."""

    def __init__(self, loss: LossSettings, limits: RequestLimits, vocab_size: int) -> None:
        self._objective = OBJECTIVES[loss.objective]
        self._limits = limits
        self._vocab_size = vocab_size
        self._token_count = 0
        self._first_rank: int | None = None
        self._first_support: int | None = None

    def parse(self, example: training_pb2.Example, index: int) -> CheckedExample:
        """Check one example.

        Raises:
            InvalidFieldError: a bad field, or one that does not fit the examples before.
            LimitExceededError: too long, or too many tokens together.
        """
        field = f"examples[{index}]"
        tokens = decode_int32(example.input_tokens, f"{field}.input_tokens", (1,))
        if not len(tokens):
            raise InvalidFieldError(f"{field}.input_tokens", "must not be empty")
        if len(tokens) > self._limits.max_sequence_tokens:
            raise LimitExceededError(
                f"{field}.input_tokens", self._limits.max_sequence_tokens, len(tokens)
            )
        self._token_count += len(tokens)
        if self._token_count > self._limits.max_request_tokens:
            raise LimitExceededError(
                "examples.input_tokens", self._limits.max_request_tokens, self._token_count
            )
        check_token_ids(tokens, f"{field}.input_tokens", self._vocab_size)
        targets: NamedTokens | PromptRows
        expected = "distribution_targets" if self._objective.needs_distribution else "token_targets"
        kind = example.WhichOneof("targets")
        if kind != expected:
            raise InvalidFieldError(
                f"{field}.targets",
                f"must be {expected} for the objective {self._objective.name}, got {kind}",
            )
        if kind == "token_targets":
            targets = self._parse_named_tokens(example, field)
            row_count = len(targets.token_ids)
        else:
            targets = _parse_prompt_rows(example, field)
            row_count = targets.row_count
        last = example.target_offset + row_count
        if example.target_offset < 0 or last > len(tokens):
            raise InvalidFieldError(
                f"{field}.target_offset",
                f"must be at least 0 and, with {row_count} target rows, at most "
                f"{len(tokens) - row_count} for {len(tokens)} input tokens, got "
                f"{example.target_offset}",
            )
        return CheckedExample(
            input_tokens=tokens, target_offset=example.target_offset, targets=targets
        )

    def _parse_named_tokens(self, example: training_pb2.Example, field: str) -> NamedTokens:
        named = example.token_targets
        ids_field = f"{field}.token_targets.token_ids"
        ids = decode_int32(named.token_ids, ids_field, (1, 2))
        if not ids.size:
            raise InvalidFieldError(ids_field, f"must not be empty, got shape {list(ids.shape)}")
        rank, support = ids.ndim, 1 if ids.ndim == 1 else ids.shape[1]
        if support > min(self._limits.max_top_k, self._vocab_size):
            raise InvalidFieldError(
                f"{ids_field}.shape",
                f"K must be in [1, {min(self._limits.max_top_k, self._vocab_size)}], got {support}",
            )
        if self._first_rank is None:
            self._first_rank, self._first_support = rank, support
        if rank != self._first_rank:
            raise InvalidFieldError(
                f"{ids_field}.shape",
                f"must have {self._first_rank} dimensions as in the examples before it, got {rank}",
            )
        if support != self._first_support:
            raise InvalidFieldError(
                f"{ids_field}.shape",
                f"K must be {self._first_support} as in the examples before it, got {support}",
            )
        check_token_ids(ids, ids_field, self._vocab_size)
        if named.HasField("weights"):
            weights_field = f"{field}.token_targets.weights"
            weights = decode_floats(named.weights, weights_field, (1, 2))
            if weights.shape != ids.shape:
                raise InvalidFieldError(
                    f"{weights_field}.shape",
                    f"must be that of the token ids {list(ids.shape)}, got {list(weights.shape)}",
                )
            check_finite(weights, weights_field)
        else:
            weights = np.ones(ids.shape, np.float32)
        if example.HasField("row_weights"):
            raise InvalidFieldError(
                f"{field}.row_weights", "only with distribution_targets; use token_targets.weights"
            )
        return NamedTokens(
            token_ids=ids.reshape(-1, support),
            weights=weights.reshape(-1, support),
            hard=rank == 1,
        )


def _parse_prompt_rows(example: training_pb2.Example, field: str) -> PromptRows:
    rows = example.distribution_targets
    for name, least in (("prompt_index", 0), ("prompt_offset", 1), ("row_count", 1)):
        if getattr(rows, name) < least:
            raise InvalidFieldError(
                f"{field}.distribution_targets.{name}",
                f"must be at least {least}, got {getattr(rows, name)}",
            )
    if rows.row_count > example.input_tokens.shape[0]:
        # Before an array of that size is made.
        raise InvalidFieldError(
            f"{field}.distribution_targets.row_count",
            f"must be at most the {example.input_tokens.shape[0]} input tokens, "
            f"got {rows.row_count}",
        )
    if example.HasField("row_weights"):
        weights = decode_floats(example.row_weights, f"{field}.row_weights", (1,))
        if len(weights) != rows.row_count:
            raise InvalidFieldError(
                f"{field}.row_weights.shape",
                f"must be [{rows.row_count}], one per target row, got {list(weights.shape)}",
            )
        check_finite(weights, f"{field}.row_weights")
    else:
        weights = np.ones(rows.row_count, np.float32)
    return PromptRows(
        prompt_index=rows.prompt_index,
        prompt_offset=rows.prompt_offset,
        row_count=rows.row_count,
        row_weights=weights,
    )


def check_token_ids(ids: Int32Array, field: str, vocab_size: int) -> None:
    """Raises InvalidFieldError unless every id is in [0, V): JAX would clamp silently."""
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        raise InvalidFieldError(
            field, f"must be in [0, {vocab_size}), got {int(ids[outside].flat[0])}"
        )


def check_finite(values: FloatArray, field: str) -> None:
    """Raises InvalidFieldError for a NaN or an infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        raise InvalidFieldError(field, f"must be finite, got {float(values[bad].flat[0])}")


def _check_positive(value: float, field: str) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InvalidFieldError(field, f"must be finite and greater than 0, got {value}")


def parse_normalization(normalization: int) -> str:
    """ "none", "rows" or "examples".

    Raises:
        InvalidFieldError: an unknown value.
    """
    names = {int(value): name for name, value in training_pb2.GradientNormalization.items()}
    if normalization not in names:
        known = ", ".join(names.values())
        raise InvalidFieldError("normalization", f"must be one of {known}, got {normalization}")
    name = names[normalization].removeprefix("GRADIENT_NORMALIZATION_").lower()
    return "none" if name == "unspecified" else name
