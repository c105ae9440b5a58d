"""The tiny model in memory, its distributions in float64, and what it samples; a device queue."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from distill.arrays import Int32Array
from distill.engine.device_queue import DeviceQueue
from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.engine.weights import ModelWeights
from distill.limits import RequestLimits
from distill.models.loading import LoadedModel, load_model
from distill.network.functional import Adapter, head_weights, hidden_states
from distill.samples import Sample
from tests.distill.engine.fake_scoring import FakeScorer, Scheduling
from tests.distill.engine.sampling_laws import RunJob
from tests.support.waiting import WAIT_SECONDS

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
        head = head_weights(model.config, model.parameters, adapter)
        kernel = np.asarray(head.kernel, np.float64).T
        if head.down is not None:
            kernel = kernel + np.asarray(head.down, np.float64) @ np.asarray(head.up, np.float64)
        return np.asarray(hidden, np.float64) @ kernel

    return logits


@pytest.fixture(scope="session")
def sampler(model: LoadedModel) -> Sampler:
    return Sampler(model)


@pytest.fixture(scope="session")
def run_job(sampler: Sampler, weights: ModelWeights) -> RunJob:
    def run(job: SampleJob) -> dict[tuple[int, int], Sample]:
        samples = [sample for sample in sampler.sample(job, weights) if sample is not None]
        by_index = {(sample.prompt_index, sample.sample_index): sample for sample in samples}
        assert len(by_index) == len(samples) == len(job.prompts) * job.samples_per_prompt
        return by_index

    return run


@pytest.fixture(scope="session")
def prompts(model: LoadedModel) -> list[Int32Array]:
    generator = np.random.default_rng(0)
    return [
        generator.integers(3, model.config.vocab_size, length).astype(np.int32)
        for length in (9, 1, 40, 17)
    ]


@pytest.fixture
def queue() -> Iterator[DeviceQueue]:
    queue = DeviceQueue()
    yield queue
    queue.close(grace_seconds=WAIT_SECONDS)


@pytest.fixture
def fake_scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture
def scheduling(queue: DeviceQueue, fake_scorer: FakeScorer) -> Scheduling:
    def make(token_budget: int = 100, join_wait_seconds: float = 0.0) -> ScoringScheduler:
        return ScoringScheduler(
            queue, fake_scorer, token_budget=token_budget, join_wait_seconds=join_wait_seconds
        )

    return make
