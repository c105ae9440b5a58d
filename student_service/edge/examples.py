"""The examples of a batch, each checked by itself and against those before it."""

from dataclasses import dataclass

import numpy as np

from distill.arrays import FloatArray, Int32Array
from distill.errors import InvalidFieldError, LimitExceededError
from distill.limits import RequestLimits
from distill.ops.objectives import OBJECTIVES
from distill.rpc.checks import check_token_ids, parse_token_ids
from distill.tensors import decode_floats, decode_int32
from distill.v1 import training_pb2
from student_service.training.batch import LossSettings, NamedTokens

MAX_LOG_PROB = 1e-3
"""Largest log-probability that is accepted: one slightly above 0 is rounding."""


@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """Targets that are rows of a scored prompt."""

    prompt_index: int
    """Index of the prompt in its scoring request."""

    prompt_offset: int
    """First row, in prompt coordinates."""

    row_count: int
    """N."""


@dataclass(frozen=True, kw_only=True)
class CheckedExample:
    """An example whose own fields are right. Its prompt's rows may not have come yet."""

    input_tokens: Int32Array
    """[T]."""

    target_offset: int
    """First target row."""

    targets: NamedTokens | PromptRows
    """The targets, or the rows of a scored prompt that are to become them."""

    row_weights: FloatArray
    """[N]."""


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
        tokens = parse_token_ids(
            example.input_tokens,
            f"{field}.input_tokens",
            vocab_size=self._vocab_size,
            max_length=self._limits.max_sequence_tokens,
        )
        self._token_count += len(tokens)
        if self._token_count > self._limits.max_request_tokens:
            raise LimitExceededError(
                f"{field}.input_tokens",
                self._limits.max_request_tokens,
                self._token_count,
                unit="tokens in all examples together",
            )
        targets: NamedTokens | PromptRows
        expected = "distribution_targets" if self._objective.reads_prompts else "token_targets"
        kind = example.WhichOneof("targets")
        if kind != expected:
            raise InvalidFieldError(
                f"{field}.targets",
                f"must be {expected} for the objective {self._objective.name}, got {kind}",
            )
        if kind == "token_targets":
            targets = self._parse_named_tokens(example, field)
            row_count = len(targets.token_ids)
            row_weights = np.ones(row_count, np.float32)
        else:
            targets = _parse_prompt_rows(example, field)
            row_count = targets.row_count
            row_weights = _parse_row_weights(example, field, row_count)
        last = example.target_offset + row_count
        if example.target_offset < 0 or last > len(tokens):
            raise InvalidFieldError(
                f"{field}.target_offset",
                f"must be at least 0 and, with {row_count} target rows, at most "
                f"{len(tokens) - row_count} for {len(tokens)} input tokens, got "
                f"{example.target_offset}",
            )
        return CheckedExample(
            input_tokens=tokens,
            target_offset=example.target_offset,
            targets=targets,
            row_weights=row_weights,
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
        check_token_ids(ids_field, ids, self._vocab_size)
        targets_field = f"{field}.token_targets"
        old_log_probs = None
        if self._objective.needs_advantages:
            weights = self._parse_values(named, "advantages", targets_field, ids.shape)
            old_log_probs = self._parse_values(named, "old_log_probs", targets_field, ids.shape)
            above = old_log_probs > MAX_LOG_PROB
            if above.any():
                raise InvalidFieldError(
                    f"{targets_field}.old_log_probs",
                    f"must be at most {MAX_LOG_PROB}, got {float(old_log_probs[above].flat[0])}",
                )
            self._refuse_values(named, ("weights",), targets_field)
        else:
            self._refuse_values(named, ("advantages", "old_log_probs"), targets_field)
            weights = np.ones(ids.shape, np.float32)
            if named.HasField("weights"):
                weights = self._parse_values(named, "weights", targets_field, ids.shape)
        if example.HasField("row_weights"):
            raise InvalidFieldError(
                f"{field}.row_weights", "only with distribution_targets; use token_targets.weights"
            )
        return NamedTokens(
            token_ids=ids.reshape(-1, support),
            weights=weights.reshape(-1, support),
            hard=rank == 1,
            old_log_probs=None if old_log_probs is None else old_log_probs.reshape(-1, support),
        )

    def _parse_values(
        self, named: training_pb2.TokenTargets, name: str, field: str, shape: tuple[int, ...]
    ) -> FloatArray:
        """Finite floats of the shape of the token ids."""
        if not named.HasField(name):  # type: ignore[arg-type] # one of the fields' names
            raise InvalidFieldError(
                f"{field}.{name}", f"must be given for the objective {self._objective.name}"
            )
        values = decode_floats(getattr(named, name), f"{field}.{name}", (1, 2))
        if values.shape != shape:
            raise InvalidFieldError(
                f"{field}.{name}.shape",
                f"must be that of the token ids {list(shape)}, got {list(values.shape)}",
            )
        _check_finite(f"{field}.{name}", values)
        return values

    def _refuse_values(
        self, named: training_pb2.TokenTargets, names: tuple[str, ...], field: str
    ) -> None:
        for name in names:
            if named.HasField(name):  # type: ignore[arg-type] # one of the fields' names
                raise InvalidFieldError(
                    f"{field}.{name}", f"the objective {self._objective.name} does not use it"
                )


def _parse_prompt_rows(example: training_pb2.Example, field: str) -> PromptRows:
    rows = example.distribution_targets
    for name, least in (("prompt_index", 0), ("prompt_offset", 1), ("row_count", 1)):
        if getattr(rows, name) < least:
            raise InvalidFieldError(
                f"{field}.distribution_targets.{name}",
                f"must be at least {least}, got {getattr(rows, name)}",
            )
    # Checked here because `row_weights` makes an array of that size.
    if rows.row_count > example.input_tokens.shape[0]:
        raise InvalidFieldError(
            f"{field}.distribution_targets.row_count",
            f"must be at most the {example.input_tokens.shape[0]} input tokens, "
            f"got {rows.row_count}",
        )
    return PromptRows(
        prompt_index=rows.prompt_index,
        prompt_offset=rows.prompt_offset,
        row_count=rows.row_count,
    )


def _parse_row_weights(example: training_pb2.Example, field: str, row_count: int) -> FloatArray:
    if not example.HasField("row_weights"):
        return np.ones(row_count, np.float32)
    weights = decode_floats(example.row_weights, f"{field}.row_weights", (1,))
    if len(weights) != row_count:
        raise InvalidFieldError(
            f"{field}.row_weights.shape",
            f"must be [{row_count}], one per target row, got {list(weights.shape)}",
        )
    _check_finite(f"{field}.row_weights", weights)
    return weights


def _check_finite(field: str, values: FloatArray) -> None:
    """Raise InvalidFieldError for a NaN or an infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        raise InvalidFieldError(field, f"must be finite, got {float(values[bad].flat[0])}")
