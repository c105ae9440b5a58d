"""The compute of training: gradients of a batch, and the optimizer step. Pure and compiled.

Nothing here knows runs, sequence numbers or messages: arrays in, new arrays out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill.engine.weights import ModelWeights
from distill.errors import NonFiniteGradientError
from distill.models.adapters import LoraSpec, init_adapter, scale_adapter
from distill.models.config import ModelConfig
from distill.models.functional import Graph, head_kernel, hidden_states
from distill.models.loading import LoadedModel
from distill.ops.head import selected_log_probs
from distill.ops.objectives import (
    OBJECTIVES,
    ObjectiveParameters,
    StudentRows,
    TargetRows,
    tail_bucket,
)
from student_service.batch import BatchOutcome, TrainingBatch
from student_service.micro_batches import MicroBatch, split_into_micro_batches
from student_service.optimizer import (
    AdamWSettings,
    StepOutcome,
    Trainable,
    adamw_step,
    as_arrays,
    initial_moments,
)
from student_service.outcomes import RowOutcomes, summarize


@dataclass(frozen=True, kw_only=True)
class GradientOutcome:
    """What a forward and backward pass over a batch made."""

    gradients: Trainable | None
    """Sum over the batch; None when no row has a weight."""

    batch: BatchOutcome
    """Loss, metrics and per-example results."""


class Trainer:
    """Compiled training functions of one base model, shared by all its runs."""

    def __init__(self, model: LoadedModel, *, token_budget: int, remat: bool) -> None:
        """Args:
        model: the base model.
        token_budget: most padded positions in one compiled call.
        remat: recompute each layer's activations in the backward pass instead of keeping them.
        """
        self._model = model
        self._token_budget = token_budget
        self._remat = remat
        static = ("graph", "config", "objective", "is_lora", "remat")
        self._gradients = jax.jit(_gradients, static_argnames=static)
        self._evaluate = jax.jit(_evaluate, static_argnames=static)
        self._accumulate = jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more))
        self._optim_step = jax.jit(adamw_step)
        self._all_finite = jax.jit(
            lambda tree: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])
        )

    @property
    def compile_count(self) -> int:
        """Programs compiled so far for batches and steps."""
        functions = (self._gradients, self._evaluate, self._optim_step)
        return sum(function._cache_size() for function in functions)  # type: ignore[attr-defined]

    def initial_trainable(self, lora: LoraSpec | None) -> Trainable:
        """A fresh adapter, or (lora is None) the base parameters in float32."""
        if lora is not None:
            return init_adapter(self._model.config, lora, jnp.float32)
        full: Trainable = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32), self._model.parameters
        )
        return full

    def initial_optimizer_state(self, trainable: Trainable) -> optax.OptState:
        """Zero moments."""
        return initial_moments(trainable)

    def weights(self, trainable: Trainable, lora: LoraSpec | None) -> ModelWeights:
        """What the scorer and the sampler run under."""
        if lora is not None:
            return ModelWeights(self._model.parameters, scale_adapter(trainable, lora.scale))
        return ModelWeights(_in_compute_dtype(trainable, self._model.parameters), None)

    def forward_backward(
        self, trainable: Trainable, lora: LoraSpec | None, batch: TrainingBatch
    ) -> Iterator[GradientOutcome | None]:
        """The gradient of a batch, a micro-batch per piece: yields None until it is done.

        Raises:
            NonFiniteGradientError: a gradient or a loss is NaN or infinite.
        """
        micro_batches = self._split(batch)
        gradients: Trainable | None = None
        rows: list[RowOutcomes] = []
        for micro_batch in micro_batches:
            more, outcome = self._gradients(**self._arguments(trainable, lora, batch, micro_batch))
            gradients = more if gradients is None else self._accumulate(gradients, more)
            rows.append(jax.device_get(outcome))
            yield None
        result = summarize(batch, micro_batches, rows)
        # Before anything is added up: a NaN in the gradient sum could never be taken out again.
        self._refuse_non_finite(gradients, result.loss)
        yield GradientOutcome(gradients=gradients, batch=result)

    def forward(
        self, trainable: Trainable, lora: LoraSpec | None, batch: TrainingBatch
    ) -> Iterator[BatchOutcome | None]:
        """Loss and metrics of a batch, a micro-batch per piece: yields None until it is done."""
        micro_batches = self._split(batch)
        rows: list[RowOutcomes] = []
        for micro_batch in micro_batches:
            outcome = self._evaluate(**self._arguments(trainable, lora, batch, micro_batch))
            rows.append(jax.device_get(outcome))
            yield None
        yield summarize(batch, micro_batches, rows)

    def accumulate(self, total: Trainable | None, more: Trainable | None) -> Trainable | None:
        """The sum of two gradients, either of which may be absent."""
        if total is None or more is None:
            return more if total is None else total
        result: Trainable = self._accumulate(total, more)
        return result

    def optim_step(
        self,
        trainable: Trainable,
        optimizer_state: optax.OptState,
        gradient_sum: Trainable,
        normalizer: float,
        settings: AdamWSettings,
    ) -> StepOutcome:
        """One AdamW step on gradient_sum / normalizer.

        Raises:
            NonFiniteGradientError: the step would not be finite.
        """
        outcome: StepOutcome = self._optim_step(
            trainable, optimizer_state, gradient_sum, jnp.float32(normalizer), as_arrays(settings)
        )
        norms = (float(outcome.gradient_norm), float(outcome.update_norm))
        if not np.isfinite(norms).all():
            raise NonFiniteGradientError(
                f"the step is not finite: gradient norm {norms[0]}, update norm {norms[1]}; "
                "the run is unchanged"
            )
        return outcome

    def _split(self, batch: TrainingBatch) -> list[MicroBatch]:
        config = self._model.config
        return split_into_micro_batches(
            batch,
            token_budget=self._token_budget,
            max_length=config.max_position_count,
            vocab_size=config.vocab_size,
        )

    def _arguments(
        self,
        trainable: Trainable,
        lora: LoraSpec | None,
        batch: TrainingBatch,
        micro_batch: MicroBatch,
    ) -> dict[str, Any]:
        return {
            "trainable": trainable,
            "base": self._model.parameters,
            "lora_scale": np.float32(1.0 if lora is None else lora.scale),
            "temperature": np.float32(batch.loss.temperature),
            "objective_parameters": ObjectiveParameters(
                jnp.float32(batch.loss.beta),
                jnp.float32(batch.loss.clip_low),
                jnp.float32(batch.loss.clip_high),
            ),
            "arrays": _arrays(micro_batch),
            "graph": self._model.graph,
            "config": self._model.config,
            "objective": batch.loss.objective,
            "is_lora": lora is not None,
            "remat": self._remat,
        }

    def _refuse_non_finite(self, gradients: Trainable | None, loss: float) -> None:
        if gradients is None:
            return
        if not np.isfinite(loss):
            raise NonFiniteGradientError(f"the loss is {loss}; the gradient sum is unchanged")
        finite = np.asarray(self._all_finite(gradients))
        if not finite.all():
            raise NonFiniteGradientError(
                f"the gradient of {int((~finite).sum())} of {finite.size} tensors is not finite; "
                "the gradient sum is unchanged"
            )


class _Arrays(NamedTuple):
    """The arrays of a micro-batch: what the compiled functions take."""

    token_ids: jax.Array  # [B, T]
    row_positions: jax.Array  # [N]
    target_ids: jax.Array  # [N, K]
    target_values: jax.Array  # [N, K]
    tail_log_probs: jax.Array  # [N]
    old_log_probs: jax.Array  # [N, K]
    row_scales: jax.Array  # [N]


def _arrays(micro_batch: MicroBatch) -> _Arrays:
    return _Arrays(*(getattr(micro_batch, name) for name in _Arrays._fields))


def _in_compute_dtype(trainable: Trainable, like: Trainable) -> Any:
    return jax.tree.map(lambda leaf, base: leaf.astype(base.dtype), trainable, like)


def _loss(
    trainable: Trainable,
    *,
    base: Mapping[str, Any],
    lora_scale: jax.Array,
    temperature: jax.Array,
    objective_parameters: ObjectiveParameters,
    arrays: _Arrays,
    graph: Graph,
    config: ModelConfig,
    objective: str,
    is_lora: bool,
    remat: bool,
) -> tuple[jax.Array, RowOutcomes]:
    spec = OBJECTIVES[objective]
    if is_lora:
        parameters, adapter = base, scale_adapter(trainable, lora_scale)
    else:
        parameters, adapter = _in_compute_dtype(trainable, base), None
    hidden = hidden_states(graph, parameters, arrays.token_ids, adapter=adapter, remat=remat)
    # Only weighted rows reach the head: their hidden states are picked out first.
    rows = hidden.reshape(-1, hidden.shape[-1])[arrays.row_positions]  # [N, D]
    head = selected_log_probs(
        rows,
        head_kernel(config, parameters),
        arrays.target_ids,
        temperature,
        with_tail=spec.needs_distribution,
        kernel_gradient=not is_lora,
    )
    student = StudentRows(head.log_probs, head.tail_log_probs)
    targets = TargetRows(arrays.target_values, arrays.tail_log_probs, arrays.old_log_probs)
    row_losses = spec.row_loss(student, targets, objective_parameters)
    no_values = jnp.zeros_like(row_losses)
    # Traced arrays here, NumPy arrays once they are fetched.
    outcomes: dict[str, Any] = {
        "log_probs": head.log_probs,
        "losses": row_losses,
        "student_entropies": head.entropies,
        "top_token_ids": head.top_token_ids,
        "support_overlaps": head.support_overlaps,
        "tail_bucket_kls": tail_bucket(student, targets, objective_parameters)
        if spec.needs_distribution
        else no_values,
    }
    return (row_losses * arrays.row_scales).sum(), RowOutcomes(**outcomes)


def _gradients(trainable: Trainable, **rest: Any) -> tuple[Trainable, RowOutcomes]:
    result: tuple[Trainable, RowOutcomes] = jax.grad(partial(_loss, **rest), has_aux=True)(
        trainable
    )
    return result


def _evaluate(trainable: Trainable, **rest: Any) -> RowOutcomes:
    return _loss(trainable, **rest)[1]


def parameter_count(trainable: Trainable) -> int:
    """Number of trained scalars."""
    leaves: Sequence[jax.Array] = jax.tree.leaves(trainable)
    return sum(leaf.size for leaf in leaves)
