"""The tiny model in memory, and its distributions in float64."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from distill.engine.weights import ModelWeights
from distill.limits import RequestLimits
from distill.models.functional import Adapter, head_kernel, hidden_states
from distill.models.loading import LoadedModel, load_model

FloatArray = NDArray[np.float64]


@pytest.fixture(scope="session")
def model(tiny_model_directory: Path) -> LoadedModel:
    return load_model(str(tiny_model_directory))


@pytest.fixture(scope="session")
def weights(model: LoadedModel) -> ModelWeights:
    return ModelWeights(model.parameters, adapter=None)


@pytest.fixture(scope="session")
def limits(model: LoadedModel) -> RequestLimits:
    return RequestLimits(
        max_sequence_tokens=model.config.max_position_count, max_top_k=model.config.vocab_size
    )


@pytest.fixture(scope="session")
def dense_logits(model: LoadedModel) -> Callable[..., FloatArray]:
    """Logits [T - 1, V] of rows 1 to T - 1 of a prompt, alone, uncached, unpadded."""

    body = jax.jit(partial(hidden_states, model.graph))

    def logits(token_ids: NDArray[np.int32], adapter: Adapter | None = None) -> FloatArray:
        hidden = body(model.parameters, token_ids[None], adapter=adapter)[0, :-1]
        kernel = head_kernel(model.config, model.parameters)
        return np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64).T

    return logits
