"""How sampling is scheduled: refilled rows, shared reading, bounded pieces, few programs."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from distill.arrays import Int32Array
from distill.engine.cache_budget import CacheBudget
from distill.engine.decoding import BLOCK_STEPS
from distill.engine.device_queue import DeviceQueue, Rest
from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.weights import ModelWeights
from distill.kernels.profile import device_profile
from distill.models.loading import LoadedModel
from distill.samples import Sample
from tests.distill.engine.sampling_laws import DenseLogits, RunJob, assert_same
from tests.support.suites import slow


def test_pieces_are_bounded_and_a_cancelled_job_generates_no_further_block(
    sampler: Sampler, weights: ModelWeights, prompts: list[Int32Array]
) -> None:
    queue = DeviceQueue()
    job = SampleJob(prompts=prompts[:1], max_tokens=1000, ignore_end_tokens=True)
    with queue.stream(sampler.sample(job, weights)) as stream:
        while stream.pieces_run < 3:
            pass
        stream.cancel()
        pieces = stream.pieces_run
    queue.close()
    assert stream.pieces_run <= pieces + 1 < 1000 / BLOCK_STEPS


def test_warm_shapes_compile_nothing(
    model: LoadedModel, weights: ModelWeights, prompts: list[Int32Array]
) -> None:
    sampler = Sampler(model)
    job = SampleJob(prompts=prompts, max_tokens=20)
    list(sampler.sample(job, weights))
    warm = sampler.compile_count
    assert warm > 0
    with jax_compilations() as compiled:
        list(sampler.sample(replace(job, temperature=0.3, top_p=0.5, seed=9, top_k=7), weights))
    assert sampler.compile_count == warm
    # Nor does anything beside the sampler's own functions.
    assert compiled == []


@contextmanager
def jax_compilations() -> Iterator[list[str]]:
    """The events of compilation while the block runs."""
    events: list[str] = []

    def listen(name: str, seconds: float, **details: Any) -> None:
        if name.endswith("backend_compile_duration"):
            events.append(f"{name} {seconds} s {details}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_a_stream_of_random_jobs_compiles_few_programs(
    model: LoadedModel, weights: ModelWeights
) -> None:
    sampler = Sampler(model)
    generator = np.random.default_rng(5)
    vocab_size = model.config.vocab_size

    def random_job() -> SampleJob:
        lengths = np.exp(generator.uniform(0, np.log(120), generator.integers(1, 7)))
        return SampleJob(
            prompts=[
                generator.integers(3, vocab_size, max(1, int(length))).astype(np.int32)
                for length in lengths
            ],
            max_tokens=int(generator.integers(1, 30)),
            temperature=float(generator.choice([0.0, 1.0])),
            samples_per_prompt=int(generator.integers(1, 5)),
            seed=int(generator.integers(1 << 40)),
        )

    for _ in range(100):
        list(sampler.sample(random_job(), weights))
    # Batches of 1, 2, 4, 8, 16 and 32 rows by caches of 128 and 256 slots: blocks, placed prompts,
    # and a batch's changes of size. Prompts of 7 lengths, 1, 4 or 16 at a time.
    assert sampler.compile_count <= 32


@pytest.mark.parametrize(
    ("temperature", "batches"), [(1.0, (8,)), slow(0.0, (2, 8, 32)), slow(1.0, (2, 32))]
)
def test_refilled_rows_hold_what_each_sample_would_be_alone(
    monkeypatch: pytest.MonkeyPatch,
    model: LoadedModel,
    run_job: RunJob,
    temperature: float,
    batches: tuple[int, ...],
) -> None:
    generator = np.random.default_rng(3)
    prompts = [
        generator.integers(3, model.config.vocab_size, length).astype(np.int32)
        for length in (5, 70, 1, 33, 20, 150, 1, 9, 64, 12)
    ]
    job = SampleJob(
        prompts=prompts,
        max_tokens=40,
        temperature=temperature,
        samples_per_prompt=1 if temperature == 0 else 2,
        # Every fourth id ends a sample, some of them long after the others.
        stop_token_ids=tuple(range(0, model.config.vocab_size, 4)),
    )
    monkeypatch.setattr("distill.engine.sampler._MAX_BATCH", 1)
    alone = run_job(job)
    assert len({len(sample.token_ids) for sample in alone.values()}) >= 4
    for most in batches:
        monkeypatch.setattr("distill.engine.sampler._MAX_BATCH", most)
        for index, sample in run_job(job).items():
            assert_same(sample, alone[index])
            assert sample.stop_reason is alone[index].stop_reason


def test_a_free_row_is_taken_by_the_next_sample_at_once(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, weights: ModelWeights
) -> None:
    monkeypatch.setattr("distill.engine.sampler._MAX_BATCH", 2)
    context = model.config.max_position_count
    # A prompt that nearly fills the context bounds its sample: of 80 and of four times 16 tokens.
    lengths = [context - 80] + [context - 16] * 4
    prompts = [np.full(length, 7 + index, np.int32) for index, length in enumerate(lengths)]
    sampler = Sampler(model)
    blocks = counted(monkeypatch, sampler, "decode_block")
    job = SampleJob(prompts=prompts, max_tokens=1000, ignore_end_tokens=True)
    samples = [sample for sample in sampler.sample(job, weights) if sample is not None]
    assert [len(sample.token_ids) for sample in samples] == [16, 16, 16, 16, 80]
    # Beside the long one the short ones follow each other; batch by batch it would be 80 + 2 * 16.
    assert len(blocks) == 80 // BLOCK_STEPS


def test_a_prompt_is_read_once_for_all_its_samples(
    monkeypatch: pytest.MonkeyPatch,
    model: LoadedModel,
    weights: ModelWeights,
    prompts: list[Int32Array],
) -> None:
    monkeypatch.setattr("distill.engine.sampler._MAX_BATCH", 4)
    sampler = Sampler(model)
    reads = counted(monkeypatch, sampler, "read_prompts")
    job = SampleJob(
        prompts=prompts[:1],
        max_tokens=30,
        samples_per_prompt=10,
        stop_token_ids=tuple(range(0, model.config.vocab_size, 4)),
    )
    list(sampler.sample(job, weights))
    assert len(reads) == 1


def counted(monkeypatch: pytest.MonkeyPatch, sampler: Sampler, name: str) -> list[None]:
    """Grows by one with every call of one of the sampler's compiled functions."""
    calls: list[None] = []
    compiled = getattr(sampler._functions, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return compiled(*args, **kwargs)

    monkeypatch.setattr(sampler._functions, name, call)
    return calls


def test_a_long_prompt_is_read_in_bounded_pieces(
    monkeypatch: pytest.MonkeyPatch,
    model: LoadedModel,
    weights: ModelWeights,
    dense_logits: DenseLogits,
) -> None:
    prompt = np.random.default_rng(1).integers(3, 200, 130).astype(np.int32)
    short_pieces = replace(device_profile(), prompt_piece_tokens=48)
    monkeypatch.setattr("distill.engine.prompt_reader.device_profile", lambda: short_pieces)
    sampler = Sampler(model)
    reads = counted(monkeypatch, sampler, "read_prompts")
    job = SampleJob(prompts=[prompt], max_tokens=6, temperature=0.0, ignore_end_tokens=True)
    pieces = list(sampler.sample(job, weights))
    # 129 tokens, 48 at a time, and one block.
    assert len(reads) == 3
    assert [piece is None for piece in pieces] == [True, True, True, False]
    whole = np.concatenate([prompt, pieces[-1].token_ids])
    np.testing.assert_array_equal(
        dense_logits(whole)[len(prompt) - 1 :].argmax(-1), pieces[-1].token_ids
    )


def test_samples_of_a_cut_stack_are_those_of_a_whole_one(
    monkeypatch: pytest.MonkeyPatch, run_job: RunJob, prompts: list[Int32Array]
) -> None:
    job = SampleJob(prompts=prompts, max_tokens=150, seed=2, samples_per_prompt=2)
    cut = run_job(job)
    # As on accelerators.
    monkeypatch.setattr("distill.engine.decode_slots.decode_parts", lambda *_: None)
    for index, sample in run_job(job).items():
        assert_same(sample, cut[index])


@pytest.fixture
def narrow(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """The sampler with memory for one job at a time."""
    monkeypatch.setattr(sampler, "_budget", CacheBudget(1))
    return sampler


def samples_of(pieces: Iterable[Sample | Rest | None]) -> list[Sample]:
    return [piece for piece in pieces if isinstance(piece, Sample)]


@pytest.fixture
def job(prompts: list[Int32Array]) -> SampleJob:
    return SampleJob(prompts=prompts[:1], max_tokens=20, ignore_end_tokens=True)


def test_a_job_begins_when_the_jobs_before_it_leave_memory_for_its_cache(
    narrow: Sampler, weights: ModelWeights, job: SampleJob
) -> None:
    first, second = narrow.sample(job, weights), narrow.sample(job, weights)
    assert not isinstance(next(first), Rest)
    assert [isinstance(next(second), Rest) for _ in range(3)] == [True] * 3
    (alone,) = samples_of(first)
    assert not isinstance(next(second), Rest)
    assert_same(*samples_of(second), alone)


def test_a_job_that_is_dropped_leaves_its_memory_to_the_next(
    narrow: Sampler, weights: ModelWeights, job: SampleJob
) -> None:
    first = narrow.sample(job, weights)
    next(first)
    second = narrow.sample(job, weights)
    assert isinstance(next(second), Rest)
    del first
    gc.collect()
    assert not isinstance(next(second), Rest)


def test_jobs_that_share_a_budget_all_end_with_the_samples_they_have_alone(
    narrow: Sampler, weights: ModelWeights, job: SampleJob
) -> None:
    jobs = [replace(job, seed=seed) for seed in range(4)]
    queue = DeviceQueue()
    # Nobody reads the first: a slow reader must not keep the others waiting.
    streams = [
        queue.stream(narrow.sample(job, weights), in_flight_limit=job.sample_count + 1)
        for job in jobs
    ]
    shared = [list(stream) for stream in reversed(streams)]
    queue.close()
    for one, samples in zip(reversed(jobs), shared, strict=True):
        assert_same(*samples, *samples_of(narrow.sample(one, weights)))
