"""The engine on a model with recurrent layers: states as a cache, and prefixes not shared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill.arrays import Int32Array
from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import ModelWeights
from distill.kernels.profile import device_profile
from distill.models.loading import LoadedModel, load_model
from tests.support.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory: Path = tmp_path_factory.mktemp("qwen3_5")
    return load_model(str(write_tiny_model(directory, "qwen3_5_text", layer_count=2)))


@pytest.fixture(scope="module")
def scorer(recurrent: LoadedModel) -> Scorer:
    return Scorer(recurrent)


@pytest.fixture(scope="module")
def recurrent_weights(recurrent: LoadedModel) -> ModelWeights:
    return ModelWeights(recurrent.parameters, adapter=None)


def tokens(length: int, seed: int) -> Int32Array:
    return np.random.default_rng(seed).integers(3, 512, length).astype(np.int32)


def own_log_probs(
    scorer: Scorer, weights: ModelWeights, prompts: list[tuple[Int32Array, int]]
) -> list[np.ndarray]:
    """log p of the tokens of each prompt from a position on."""
    jobs = [
        ScoreJob(
            prompt_index=row,
            token_ids=token_ids,
            score_from=score_from,
            top_k=1,
            temperature=1.0,
        )
        for row, (token_ids, score_from) in enumerate(prompts)
    ]
    parts: list[list[np.ndarray]] = [[] for _ in jobs]
    for chunk in scorer.score(jobs, weights):
        parts[chunk.prompt_index].append(chunk.prompt_log_probs)
    return [np.concatenate(chunks) for chunks in parts]


def test_prompts_with_a_shared_prefix_are_scored_as_if_alone(
    scorer: Scorer, recurrent_weights: ModelWeights
) -> None:
    context = tokens(33, seed=0)
    prompts = [(np.concatenate([context, tokens(5 + row, seed=row + 1)]), 1) for row in range(3)]
    before = scorer.body_tokens_computed
    together = own_log_probs(scorer, recurrent_weights, prompts)
    assert scorer.body_tokens_computed - before == sum(len(ids) - 1 for ids, _ in prompts)
    for row, prompt in enumerate(prompts):
        (alone,) = own_log_probs(scorer, recurrent_weights, [prompt])
        np.testing.assert_allclose(together[row], alone, atol=1e-4)


def test_refilled_rows_and_prompts_read_in_pieces_sample_as_scoring_says(
    recurrent: LoadedModel,
    scorer: Scorer,
    recurrent_weights: ModelWeights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short_pieces = replace(device_profile(), prompt_piece_tokens=24)
    monkeypatch.setattr("distill.engine.prompt_reader.device_profile", lambda: short_pieces)
    # Of one token, padded to a bucket, and in two pieces, the second padded. More samples than
    # rows: a row that held one is given to another, of one token as well.
    prompts = [tokens(length, seed=index) for index, length in enumerate((1, 9, 40, 1))]
    job = SampleJob(
        prompts=prompts, max_tokens=11, samples_per_prompt=10, seed=5, ignore_end_tokens=True
    )
    samples = [
        sample for sample in Sampler(recurrent).sample(job, recurrent_weights) if sample is not None
    ]
    assert len(samples) == 40
    wholes = []
    for sample in samples:
        prompt = prompts[sample.prompt_index]
        wholes.append((np.concatenate([prompt, sample.token_ids]), len(prompt)))
    expected = own_log_probs(scorer, recurrent_weights, wholes)
    for sample, log_probs in zip(samples, expected, strict=True):
        np.testing.assert_allclose(sample.log_probs, log_probs, atol=3e-4)
