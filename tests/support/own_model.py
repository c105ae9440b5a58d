"""This project's side of a comparison: dense log-probs and named gradients of one sequence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill.models.loading import LoadedModel
from distill.models.write_directory import hf_tensors
from distill.network.adapters import scale_adapter
from distill.network.config import ModelConfig
from distill.network.functional import (
    Adapter,
    Graph,
    Parameters,
    head_weights,
    hidden_states,
)
from distill.ops.divergences import cross_entropy
from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.logits import head_logits
from distill.ops.objectives import TargetRows
from tests.support.comparison import FloatArray, SoftTargets


def own_log_probs(
    model: LoadedModel, token_ids: NDArray[np.int32], adapter: Adapter | None = None
) -> FloatArray:
    """log p of every token at every position: [T] -> [T, V]. The adapter is already scaled."""
    dense = _dense_log_probs(
        model.graph, model.config, model.parameters, jnp.asarray(token_ids), adapter
    )
    return np.asarray(dense)


def own_gradients(
    model: LoadedModel, token_ids: NDArray[np.int32], targets: SoftTargets
) -> dict[str, FloatArray]:
    """Gradient of `SoftTargets`' loss in every parameter, under the names of Transformers.

    Through the head of training, so that its analytic gradient is compared as well.
    """

    def loss(parameters: Parameters) -> jax.Array:
        return _loss(model.graph, model.config, parameters, None, token_ids, targets)

    return dict(hf_tensors(model.config, jax.jit(jax.grad(loss))(model.parameters)))


def own_adapter_gradients(
    model: LoadedModel,
    adapter: Adapter,
    scale: float,
    token_ids: NDArray[np.int32],
    targets: SoftTargets,
) -> Adapter:
    """The same in an adapter's `a` and `b`, as they are before `scale` is folded in."""

    def loss(unscaled: Adapter) -> jax.Array:
        scaled = scale_adapter(unscaled, scale)
        return _loss(model.graph, model.config, model.parameters, scaled, token_ids, targets)

    return jax.jit(jax.grad(loss))(adapter)


@partial(jax.jit, static_argnums=(0, 1))
def _dense_log_probs(
    graph: Graph,
    config: ModelConfig,
    parameters: Parameters,
    token_ids: jax.Array,
    adapter: Adapter | None,
) -> jax.Array:
    hidden = hidden_states(graph, parameters, token_ids[None], adapter=adapter)[0]
    logits = head_logits(hidden, head_weights(config, parameters, adapter))
    return jax.nn.log_softmax(logits, axis=-1)


def _loss(
    graph: Graph,
    config: ModelConfig,
    parameters: Parameters,
    adapter: Adapter | None,
    token_ids: NDArray[np.int32],
    targets: SoftTargets,
) -> jax.Array:
    hidden = hidden_states(graph, parameters, jnp.asarray(token_ids)[None], adapter=adapter)[0]
    row_count = len(targets.token_ids)
    weights = jnp.asarray(targets.weights)
    unused = jnp.zeros(row_count)
    loss, _ = head_loss(
        hidden,
        head_weights(config, parameters, adapter),
        HeadTargets(
            jnp.asarray(targets.token_ids),
            TargetRows(weights, unused, jnp.zeros_like(weights)),
            jnp.ones(row_count),
        ),
        HeadSettings(cross_entropy, with_tail=False),
        temperature=targets.temperature,
    )
    return loss
