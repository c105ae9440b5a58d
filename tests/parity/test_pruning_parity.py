"""A pruned model as Transformers reads it, and as Transformers computes with layers taken out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.models.loading import load_model
from distill.models.pruning import prune
from tests.parity.reference import (
    load_reference,
    load_reference_tokenizer,
    reference_log_probs,
)
from tests.support.own_model import own_log_probs
from tests.support.tiny_models import write_tiny_model

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4
KEPT = (0, 2, 3)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_pruned_model_is_the_model_without_the_other_layers(
    family: str, tmp_path: Path, record_error: Callable[[str, float], float]
) -> None:
    source = write_tiny_model(tmp_path / "source", family, layer_count=5)
    pruned = tmp_path / "pruned"
    prune(str(source), ",".join(map(str, KEPT)), pruned)
    token_ids = np.random.default_rng(3).integers(0, 400, 40).astype(np.int32)

    shortened = load_reference(source)
    layers = shortened.model.layers
    shortened.model.layers = torch.nn.ModuleList(layers[layer] for layer in KEPT)
    expected = reference_log_probs(shortened, token_ids)
    loaded = reference_log_probs(load_reference(pruned), token_ids)
    np.testing.assert_allclose(loaded, expected, atol=1e-6)
    own = own_log_probs(load_model(str(pruned)), token_ids)
    error = float(np.abs(own - expected).max())
    assert record_error(f"{family}: pruned, nats", error) < TOLERANCE
    tokenizer = load_reference_tokenizer(pruned)
    text = "The student's 17 tokens"
    assert tokenizer(text)["input_ids"] == load_model(str(source)).tokenizer.encode(text)
