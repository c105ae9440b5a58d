"""`python -m benchmarks`: scoring and training in tokens per second, beside the machine's peak.

The peak is what this process reaches on a large matrix product of the same dtype. All three are
measured in turn, several rounds of them, because a shared machine's speed drifts: a ratio of
figures from different minutes says nothing. Printed are the medians and the range.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.work import forward_flops, lora_training_flops
from distill.engine.scorer import ScoreJob, Scorer
from distill.engine.weights import ModelWeights
from distill.models.adapters import ADAPTER_TARGETS, LoraSpec
from distill.models.loading import LoadedModel, load_model
from distill.rpc.model_info import request_limits
from student_service.batch import ExampleTargets, LossSettings, TrainingBatch, TrainingExample
from student_service.trainer import Trainer

MICRO_BATCH_TOKENS = 1024
"""The service's default."""

LORA = LoraSpec(rank=16, alpha=32.0, target_modules=ADAPTER_TARGETS, seed=0)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is scored and trained on."""

    sequence_count: int
    """B."""

    sequence_tokens: int
    """T."""

    top_k: int
    """K."""

    @property
    def token_count(self) -> int:
        """Tokens in all sequences."""
        return self.sequence_count * self.sequence_tokens


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One thing to measure."""

    name: str
    """Printed."""

    run: Callable[[], object]
    """Does it once and returns when it is done."""

    flops: float
    """Floating-point operations that one run needs."""

    token_count: int | None
    """Tokens in one run; None where that means nothing."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--model", default="smollm2-135m", metavar="REF", help="default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--sequences", type=int, default=8, metavar="COUNT", help="default: %(default)s")
    add("--tokens", type=int, default=256, metavar="COUNT", help="each; default: %(default)s")
    add("--top-k", type=int, default=20, metavar="K", help="default: %(default)s")
    add("--rounds", type=int, default=5, metavar="COUNT", help="default: %(default)s")
    arguments = parser.parse_args()

    workload = Workload(
        sequence_count=arguments.sequences,
        sequence_tokens=arguments.tokens,
        top_k=arguments.top_k,
    )
    model = load_model(arguments.model, compute_dtype=arguments.dtype)
    print(
        f"{model.name}, {arguments.dtype}, on {jax.devices()[0].device_kind} "
        f"({platform.machine()}); {workload.sequence_count} sequences of "
        f"{workload.sequence_tokens} tokens, K = {workload.top_k}, {arguments.rounds} rounds"
    )
    measurements = [
        peak(arguments.dtype),
        scoring(model, workload),
        training(model, workload),
    ]
    report(measurements, measure(measurements, arguments.rounds))


def peak(dtype: str, size: int = 2048) -> Measurement:
    """A square matrix product, large enough to be bound by arithmetic."""
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    return Measurement(
        name="matrix product",
        run=lambda: product(matrix, matrix).block_until_ready(),
        flops=2.0 * size**3,
        token_count=None,
    )


def scoring(model: LoadedModel, workload: Workload) -> Measurement:
    """The teacher's part: the top K of every row, as chunks in host memory."""
    limits = request_limits(model, max_sequence_tokens=None, max_top_k=None)
    scorer = Scorer(model, limits)
    weights = ModelWeights(model.parameters, None)
    jobs = [
        ScoreJob(row=row, token_ids=token_ids, score_from=1, top_k=workload.top_k, temperature=1.0)
        for row, token_ids in enumerate(random_sequences(model, workload))
    ]
    flops = forward_flops(
        model.config,
        sequence_tokens=workload.sequence_tokens,
        head_rows=workload.sequence_tokens - 1,
    )
    return Measurement(
        name="teacher: score, top K",
        run=lambda: sum(len(chunk.token_ids) for chunk in scorer.score(jobs, weights)),
        flops=workload.sequence_count * flops,
        token_count=workload.token_count,
    )


def training(model: LoadedModel, workload: Workload) -> Measurement:
    """The student's part: the gradient of a LoRA adapter, with a target in every row."""
    trainer = Trainer(model, token_budget=MICRO_BATCH_TOKENS, remat=False)
    adapter = trainer.initial_trainable(LORA)
    batch = training_batch(model, workload)

    flops = lora_training_flops(
        model.config,
        sequence_tokens=workload.sequence_tokens,
        head_rows=workload.sequence_tokens,
    )
    return Measurement(
        name="student: forward_backward",
        # Its last piece has checked that the gradient is finite, so it is there by then.
        run=lambda: list(trainer.forward_backward(adapter, LORA, batch)),
        flops=workload.sequence_count * flops,
        token_count=workload.token_count,
    )


def random_sequences(model: LoadedModel, workload: Workload) -> np.ndarray:
    """[B, T] token ids: the time of a matrix product does not depend on its values."""
    generator = np.random.default_rng(0)
    shape = (workload.sequence_count, workload.sequence_tokens)
    return generator.integers(0, model.config.vocab_size, shape, dtype=np.int32)


def training_batch(model: LoadedModel, workload: Workload) -> TrainingBatch:
    """Random distributions over K random tokens at every position."""
    generator = np.random.default_rng(1)
    rows, top_k = workload.sequence_tokens, workload.top_k
    examples = []
    for token_ids in random_sequences(model, workload):
        logits = generator.normal(size=(rows, top_k + 1))
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        log_probs[:, :top_k] = -np.sort(-log_probs[:, :top_k], axis=1)
        support = [
            generator.choice(model.config.vocab_size, top_k, replace=False) for _ in range(rows)
        ]
        targets = ExampleTargets(
            offset=0,
            token_ids=np.asarray(support, np.int32),
            values=log_probs[:, :top_k].astype(np.float32),
            tail_log_probs=log_probs[:, top_k].astype(np.float32),
            teacher_entropies=(-np.exp(log_probs) * log_probs).sum(axis=1).astype(np.float32),
            row_weights=np.ones(rows, np.float32),
            hard=False,
        )
        examples.append(TrainingExample(input_tokens=token_ids, targets=targets))
    return TrainingBatch(loss=LossSettings(objective="tail_bucket"), examples=tuple(examples))


def measure(measurements: list[Measurement], round_count: int) -> list[list[float]]:
    """Seconds of each measurement in each round, after one run of each that compiles."""
    for measurement in measurements:
        measurement.run()
    seconds: list[list[float]] = [[] for _ in measurements]
    for _ in range(round_count):
        for measurement, samples in zip(measurements, seconds, strict=True):
            started = time.perf_counter()
            measurement.run()
            samples.append(time.perf_counter() - started)
    return seconds


def report(measurements: list[Measurement], seconds: list[list[float]]) -> None:
    """Print a table; the first measurement is the peak."""
    peak_rate = measurements[0].flops / statistics.median(seconds[0])
    print(f"{'':28}{'seconds (min-max)':>26}{'tokens/s':>12}{'GFLOP/s':>10}{'of peak':>9}")
    for measurement, samples in zip(measurements, seconds, strict=True):
        median = statistics.median(samples)
        rate = measurement.flops / median
        count = measurement.token_count
        tokens = "" if count is None else f"{count / median:,.0f}"
        times = f"{median:.3f} ({min(samples):.3f}-{max(samples):.3f})"
        share = f"{rate / peak_rate:.0%}"
        print(f"{measurement.name:28}{times:>26}{tokens:>12}{rate / 1e9:>10.1f}{share:>9}")


if __name__ == "__main__":
    main()
