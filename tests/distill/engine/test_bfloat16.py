"""Scoring and sampling in bfloat16 agree with each other, and with the same weights in float32."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import base_weights
from distill.kernels.profile import device_profile
from distill.models.loading import LoadedModel, load_model
from distill.samples import Sample

ROUNDING = 2.0**-6
"""Of the length of a row of log-probs: a bfloat16 has 8 bits, and each layer rounds a few times.
What is computed from wrong numbers is off by its own length."""


@pytest.fixture(scope="module")
def half(tiny_model_directory: Path) -> LoadedModel:
    return load_model(str(tiny_model_directory), compute_dtype="bfloat16")


def prompt_log_probs(model: LoadedModel, token_ids: list[int]) -> np.ndarray:
    job = ScoreJob(
        prompt_index=0,
        token_ids=np.asarray(token_ids, np.int32),
        score_from=1,
        top_k=4,
        temperature=1.0,
    )
    chunks = list(Scorer(model).score([job], base_weights(model)))
    return np.concatenate([chunk.prompt_log_probs for chunk in chunks])


def assert_near(own: np.ndarray, exact: np.ndarray) -> None:
    assert np.linalg.norm(own - exact) < ROUNDING * np.linalg.norm(exact)


def test_scores_are_those_of_float32_but_for_rounding(half: LoadedModel, model: LoadedModel):
    # Another length than those of a call, and more rows than are read at a time.
    token_ids = list(np.random.default_rng(0).integers(3, model.config.vocab_size, 75))
    own, exact = prompt_log_probs(half, token_ids), prompt_log_probs(model, token_ids)
    assert not np.array_equal(own, exact)
    assert_near(own, exact)


@pytest.mark.parametrize("prompt_count", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_samples_are_as_probable_as_scoring_finds_them(half: LoadedModel, prompt_count: int):
    generator = np.random.default_rng(1)
    prompts = [generator.integers(3, 40, 9, dtype=np.int32) for _ in range(prompt_count)]
    job = SampleJob(prompts=prompts, max_tokens=11, ignore_end_tokens=True, seed=3)
    samples = [
        piece
        for piece in Sampler(half).sample(job, base_weights(half))
        if isinstance(piece, Sample)
    ]
    assert len(samples) == prompt_count
    for sample in samples:
        whole = [*prompts[sample.prompt_index].tolist(), *sample.token_ids]
        scored = prompt_log_probs(half, whole)[-len(sample.token_ids) :]
        assert_near(np.asarray(sample.log_probs), scored)


def test_base_weights_hold_the_head_as_products_read_it(half: LoadedModel, model: LoadedModel):
    assert base_weights(model).head_columns is None
    columns = base_weights(half).head_columns
    if device_profile().stores_head_columns:
        embedding = half.parameters["embed_tokens"]["embedding"]
        assert columns is not None
        assert columns.dtype == jnp.bfloat16
        np.testing.assert_array_equal(columns, embedding.T)
