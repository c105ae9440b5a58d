"""The compute of training: gradients of a batch, and the optimizer step. Pure and compiled.

Nothing here knows runs, sequence numbers or messages: arrays in, new arrays out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill.engine.compiled import CompiledFunctions
from distill.engine.weights import ModelWeights, base_weights
from distill.errors import NonFiniteGradientError
from distill.models.loading import LoadedModel
from distill.network.adapters import LoraSpec, init_adapter, scale_adapter
from distill.network.functional import head_columns
from student_service.training.batch import BatchOutcome, TrainingBatch
from student_service.training.gradients import (
    add_gradients,
    batch_arrays,
    evaluate,
    in_compute_dtype,
)
from student_service.training.micro_batches import MicroBatch, Sources, split_into_micro_batches
from student_service.training.optimizer import (
    AdamWSettings,
    StepOutcome,
    Trainable,
    adamw_step,
    as_arrays,
    initial_moments,
)
from student_service.training.outcomes import RowOutcomes, summarize


@dataclass(frozen=True, kw_only=True)
class GradientOutcome:
    """The result of a forward and a backward pass over a batch."""

    gradients: Trainable | None
    """Sum over the batch; None when no row has a weight."""

    batch: BatchOutcome
    """Loss, metrics and per-example results."""


class Trainer:
    """Compiled training functions of one base model, shared by all its runs."""

    def __init__(self, model: LoadedModel, *, token_budget: int, remat: bool) -> None:
        """Args:
        model: the base model.
        token_budget: most tokens in one compiled call; a longer example is alone in one.
        remat: recompute each layer's activations in the backward pass instead of keeping them.
        """
        self._model = model
        self._token_budget = token_budget
        self._remat = remat
        static = ("graph", "config", "objective", "is_lora", "remat")
        self._compiled = CompiledFunctions()
        add = self._compiled.add
        # `total` is donated: the sum over the micro-batches of a call grows in place.
        self._add_gradients = add(add_gradients, static_argnames=static, donate_argnames="total")
        self._evaluate = add(evaluate, static_argnames=static)
        self._optim_step = add(adamw_step)
        self._zeros = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))
        self._accumulate = jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more))
        self._norm = jax.jit(optax.tree.norm)

    @property
    def compile_count(self) -> int:
        """Programs compiled so far for batches and steps."""
        return self._compiled.compile_count

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
        """The weights that the scorer and the sampler run under."""
        if lora is not None:
            return base_weights(self._model, scale_adapter(trainable, lora.scale))
        parameters = in_compute_dtype(trainable, self._model.parameters)
        return ModelWeights(parameters, None, head_columns(self._model.config, parameters))

    def forward_backward(
        self, trainable: Trainable, lora: LoraSpec | None, batch: TrainingBatch
    ) -> Iterator[GradientOutcome | None]:
        """The gradient of a batch, one micro-batch per piece. Yields None until it is done.

        Raises:
            NonFiniteGradientError: a gradient or a loss is NaN or infinite.
        """
        gradients: Trainable | None = None
        sources: list[Sources] = []
        rows: list[RowOutcomes] = []
        for micro_batch in split_into_micro_batches(batch, token_budget=self._token_budget):
            total = self._zeros(trainable) if gradients is None else gradients
            gradients, outcome = self._add_gradients(
                total, **self._arguments(trainable, lora, batch, micro_batch)
            )
            sources.append(micro_batch.sources)
            rows.append(_fetch(outcome, micro_batch.weighted_row_count))
            yield None
        result = summarize(batch, sources, rows)
        if gradients is not None:
            # Checked before it is added to the run's gradient sum: a NaN would stay in that sum.
            if not np.isfinite(result.loss):
                raise NonFiniteGradientError(
                    f"the loss is {result.loss}; the gradient sum is unchanged"
                )
            self._refuse_non_finite(gradients, "the gradient")
        yield GradientOutcome(gradients=gradients, batch=result)

    def forward(
        self, trainable: Trainable, lora: LoraSpec | None, batch: TrainingBatch
    ) -> Iterator[BatchOutcome | None]:
        """Loss and metrics of a batch, one micro-batch per piece. Yields None until it is done."""
        sources: list[Sources] = []
        rows: list[RowOutcomes] = []
        for micro_batch in split_into_micro_batches(batch, token_budget=self._token_budget):
            outcome = self._evaluate(**self._arguments(trainable, lora, batch, micro_batch))
            sources.append(micro_batch.sources)
            rows.append(_fetch(outcome, micro_batch.weighted_row_count))
            yield None
        yield summarize(batch, sources, rows)

    def accumulate(self, total: Trainable | None, more: Trainable | None) -> Trainable | None:
        """The sum of two gradients; None stands for a gradient of nothing.

        Raises:
            NonFiniteGradientError: the sum is not finite though both are.
        """
        if total is None or more is None:
            return more if total is None else total
        result: Trainable = self._accumulate(total, more)
        self._refuse_non_finite(result, "the gradient sum")
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
        norms = {name: float(norm) for name, norm in outcome.norms.items()}
        if not np.isfinite(list(norms.values())).all():
            values = (f"{name.replace('_', ' ')} {norm}" for name, norm in norms.items())
            described = ", ".join(values)
            raise NonFiniteGradientError(
                f"the step is not finite: {described}; the run is unchanged"
            )
        return outcome

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
            "base_columns": self._model.head_columns if lora is not None else None,
            "arrays": batch_arrays(micro_batch, batch.loss, lora),
            "graph": self._model.graph,
            "config": self._model.config,
            "objective": batch.loss.objective,
            "is_lora": lora is not None,
            "remat": self._remat,
        }

    def _refuse_non_finite(self, gradients: Trainable, what: str) -> None:
        # The norm can overflow where every element is finite, and a step needs a finite one.
        norm = float(self._norm(gradients))
        if not np.isfinite(norm):
            raise NonFiniteGradientError(
                f"the norm of {what} is {norm}; the gradient sum is unchanged"
            )


def _fetch(outcome: RowOutcomes, row_count: int) -> RowOutcomes:
    """The rows that are not padding, copied, so that the padded arrays are freed."""
    return RowOutcomes(*(array[:row_count].copy() for array in jax.device_get(outcome)))


def parameter_count(trainable: Trainable) -> int:
    """Number of trained scalars."""
    leaves: Sequence[jax.Array] = jax.tree.leaves(trainable)
    return sum(leaf.size for leaf in leaves)
