"""The sparse MLP against dense NumPy: router, experts and the shared expert."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from distill.errors import ModelError
from distill.families.qwen3_moe import SPARSE
from distill.network.experts import SparseMLP
from distill.network.experts_config import ExpertsConfig
from tests.support.tiny_models import tiny_config

HIDDEN_SIZE = 12


def sparse_mlp(dtype: Any = jnp.float32, **overrides: Any) -> SparseMLP:
    config = ExpertsConfig(
        **{
            "expert_count": 5,
            "choice_count": 2,
            "expert_size": 9,
            "is_normalized": True,
            **overrides,
        }
    )
    model = tiny_config("qwen3_moe", hidden_size=HIDDEN_SIZE, experts=config)
    return SparseMLP(model, SPARSE, dtype, rngs=nnx.Rngs(1))


def hidden_states(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((2, 7, HIDDEN_SIZE), dtype=np.float32)


def dense(mlp: SparseMLP, hidden: NDArray[Any]) -> NDArray[np.float64]:
    """Every token through every expert, in float64."""
    wide: Any = jax.tree.map(
        lambda array: np.asarray(array, np.float64), nnx.to_pure_dict(nnx.state(mlp))
    )
    rows = np.asarray(hidden, np.float64).reshape(-1, HIDDEN_SIZE)
    logits = rows @ wide["router"]["kernel"]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    lowest = np.sort(probabilities, axis=-1)[:, -mlp.config.choice_count, None]
    weights = np.where(probabilities >= lowest, probabilities, 0)
    if mlp.config.is_normalized:
        weights /= weights.sum(-1, keepdims=True)

    def gated(parameters: Any, at: Any = ...) -> NDArray[np.float64]:
        gate, up, down = (
            parameters[name]["kernel"][at] for name in ("gate_proj", "up_proj", "down_proj")
        )
        values = rows @ gate
        result: NDArray[np.float64] = (values / (1 + np.exp(-values)) * (rows @ up)) @ down
        return result

    mixed = sum(
        weights[:, expert, None] * gated(wide["experts"], expert)
        for expert in range(mlp.config.expert_count)
    )
    if mlp.config.shared_expert_size is not None:
        shared = wide["shared_expert"]
        mixed = mixed + gated(shared) / (1 + np.exp(-rows @ shared["gate"]["kernel"]))
    return np.asarray(mixed).reshape(hidden.shape)


@pytest.mark.parametrize("shared_expert_size", [None, 6])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_the_layer_equals_every_token_through_every_expert(
    shared_expert_size: int | None, is_normalized: bool
) -> None:
    mlp = sparse_mlp(shared_expert_size=shared_expert_size, is_normalized=is_normalized)
    hidden = hidden_states()
    np.testing.assert_allclose(mlp(jnp.asarray(hidden), {}), dense(mlp, hidden), atol=2e-6)


def test_the_router_is_float32_under_bfloat16() -> None:
    mlp = sparse_mlp(jnp.bfloat16, shared_expert_size=6)
    assert mlp.router.kernel[...].dtype == jnp.float32
    assert mlp.experts.gate_proj.kernel[...].dtype == jnp.bfloat16
    hidden = jnp.asarray(hidden_states(), jnp.bfloat16)
    result = mlp(hidden, {})
    assert result.dtype == jnp.bfloat16
    expected = dense(mlp, np.asarray(hidden, np.float32))
    # With a bfloat16 router some token would visit another expert, and be off by all of it.
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=2e-2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expert_count", 0),
        ("choice_count", 6),
        ("choice_count", 0),
        ("expert_size", 0),
        ("shared_expert_size", 0),
    ],
)
def test_impossible_sizes_are_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(ModelError, match=field):
        sparse_mlp(**{field: value})
