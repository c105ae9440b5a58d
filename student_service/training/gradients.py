"""The loss of a micro-batch and its gradient: pure functions, compiled by the trainer."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.network.adapters import LoraSpec, scale_adapter
from distill.network.config import ModelConfig
from distill.network.functional import Graph, head_weights, packed_hidden_states
from distill.network.packing import Segments
from distill.ops.divergences import tail_bucket
from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.objectives import OBJECTIVES, ObjectiveParameters, StudentRows, TargetRows
from student_service.training.batch import LossSettings
from student_service.training.micro_batches import MicroBatch
from student_service.training.optimizer import Trainable
from student_service.training.outcomes import RowOutcomes


class BatchArrays(NamedTuple):
    """A micro-batch and its settings as arrays: other values need no other compiled program."""

    token_ids: jax.Array
    """[N]."""

    segments: Segments
    """Of the pack, [N] each."""

    row_slots: jax.Array
    """[R]."""

    row_count: jax.Array
    """Rows in use."""

    targets: HeadTargets
    """Of the R rows."""

    temperature: jax.Array
    """Of the student's logits."""

    lora_scale: jax.Array
    """alpha / rank; 1 where all weights are trained."""

    parameters: ObjectiveParameters
    """Of the objective."""


def batch_arrays(micro_batch: MicroBatch, loss: LossSettings, lora: LoraSpec | None) -> BatchArrays:
    """A micro-batch and its settings as the compiled functions take them."""
    # NumPy arrays, which become JAX arrays when a compiled function is called.
    values: dict[str, Any] = {
        "token_ids": micro_batch.pack.token_ids,
        "segments": micro_batch.pack.segments,
        "row_slots": micro_batch.row_slots,
        "row_count": np.int32(micro_batch.weighted_row_count),
        "temperature": np.float32(loss.temperature),
        "lora_scale": np.float32(1.0 if lora is None else lora.scale),
    }
    rows: Any = (micro_batch.target_values, micro_batch.tail_log_probs, micro_batch.old_log_probs)
    settings: Any = {name: np.float32(getattr(loss, name)) for name in ObjectiveParameters._fields}
    ids: Any = micro_batch.target_ids
    scales: Any = micro_batch.row_scales
    return BatchArrays(
        **values,
        targets=HeadTargets(ids, TargetRows(*rows), scales),
        parameters=ObjectiveParameters(**settings),
    )


def batch_loss(
    trainable: Trainable,
    *,
    base: Mapping[str, Any],
    base_columns: jax.Array | None,
    arrays: BatchArrays,
    graph: Graph,
    config: ModelConfig,
    objective: str,
    is_lora: bool,
    remat: bool,
) -> tuple[jax.Array, RowOutcomes]:
    """The loss of a micro-batch, a scalar, and the outcomes of its rows."""
    spec = OBJECTIVES[objective]
    if is_lora:
        parameters, adapter = base, scale_adapter(trainable, arrays.lora_scale)
    else:
        # "layers" stay float32 here: each layer casts its own weights when it runs.
        outside = {name: tree for name, tree in trainable.items() if name != "layers"}
        parameters = {**in_compute_dtype(outside, base), "layers": trainable["layers"]}
        adapter = None
    hidden = packed_hidden_states(
        graph, parameters, arrays.token_ids, arrays.segments, adapter=adapter, remat=remat
    )
    loss, rows = head_loss(
        # Only weighted rows reach the head: their hidden states are picked out first.
        hidden[arrays.row_slots],
        head_weights(config, parameters, adapter, base_columns),
        arrays.targets,
        HeadSettings(spec.row_loss, spec.needs_distribution, kernel_gradient=not is_lora),
        temperature=arrays.temperature,
        parameters=arrays.parameters,
        row_count=arrays.row_count,
    )
    student = StudentRows(rows.log_probs, rows.tail_log_probs)
    # Any: `RowOutcomes` declares NumPy arrays, which these are once the trainer has fetched them.
    outcomes: dict[str, Any] = {
        "log_probs": rows.log_probs,
        "losses": rows.losses,
        "student_entropies": rows.entropies,
        "top_token_ids": rows.top_token_ids,
        "support_overlaps": rows.support_overlaps,
        "tail_bucket_kls": tail_bucket(student, arrays.targets.rows, arrays.parameters)
        if spec.needs_distribution
        else jnp.zeros_like(rows.losses),
    }
    return loss, RowOutcomes(**outcomes)


def add_gradients(
    total: Trainable, trainable: Trainable, **rest: Any
) -> tuple[Trainable, RowOutcomes]:
    """The gradient of `batch_loss` added to a sum, whose memory the caller may donate."""
    gradients, outcomes = jax.grad(partial(batch_loss, **rest), has_aux=True)(trainable)
    return jax.tree.map(jnp.add, total, gradients), outcomes


def evaluate(trainable: Trainable, **rest: Any) -> RowOutcomes:
    """The outcomes of a micro-batch's rows, without a gradient."""
    return batch_loss(trainable, **rest)[1]


def in_compute_dtype(trainable: Trainable, like: Trainable) -> Any:
    """Float32 parameters of a model, all or some, cast to the dtypes of `like`."""
    return {
        name: jax.tree.map(lambda leaf, base: leaf.astype(base.dtype), tree, like[name])
        for name, tree in trainable.items()
    }
