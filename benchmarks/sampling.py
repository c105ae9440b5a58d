"""`python -m benchmarks.sampling`: sampled tokens per second by batch size.

A batch of prompts is sampled to a fixed number of tokens, end tokens ignored. The time until every
sample has one token is measured apart: it is nearly all reading of prompts.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.weights import base_weights
from distill.models.loading import LoadedModel, load_model
from distill.network.adapters import ADAPTER_TARGETS, LoraSpec, init_adapter, scale_adapter
from distill.network.functional import Adapter
from distill.samples import Sample


@dataclass(frozen=True, kw_only=True)
class SamplingRate:
    """Medians of one batch size."""

    batch_size: int
    """Prompts that are sampled together."""

    whole_tokens_per_second: float
    """New tokens over the whole time, the reading of the prompts included."""

    decode_tokens_per_second: float
    """New tokens but the first of each sample, over the time after those."""

    first_token_seconds: float
    """Until every sample has its first token."""


def measure_sampling(
    model: LoadedModel,
    batch_sizes: Sequence[int],
    new_tokens: int,
    rounds: int,
    *,
    context_tokens: int = 64,
    adapter: Adapter | None = None,
) -> list[SamplingRate]:
    """Measure batches of different sizes in turn, after one run of each that compiles.

    Args:
        model: what samples.
        batch_sizes: prompts in a batch.
        new_tokens: generated for each, at least 2.
        rounds: how often each batch size is measured.
        context_tokens: length of every prompt.
        adapter: sampled under, already scaled.
    """
    sampler = Sampler(model)
    weights = base_weights(model, adapter)

    def seconds(batch_size: int, token_count: int) -> float:
        generator = np.random.default_rng(0)
        shape = (batch_size, context_tokens)
        prompts = generator.integers(0, model.config.vocab_size, shape, dtype=np.int32)
        job = SampleJob(prompts=list(prompts), max_tokens=token_count, ignore_end_tokens=True)
        started = time.perf_counter()
        samples = [piece for piece in sampler.sample(job, weights) if isinstance(piece, Sample)]
        taken = time.perf_counter() - started
        assert sum(len(sample.token_ids) for sample in samples) == batch_size * token_count
        return taken

    for batch_size in batch_sizes:
        seconds(batch_size, new_tokens)
        seconds(batch_size, 1)
    firsts: dict[int, list[float]] = {batch_size: [] for batch_size in batch_sizes}
    wholes: dict[int, list[float]] = {batch_size: [] for batch_size in batch_sizes}
    for _ in range(rounds):
        for batch_size in batch_sizes:
            firsts[batch_size].append(seconds(batch_size, 1))
            wholes[batch_size].append(seconds(batch_size, new_tokens))
    rates = []
    for batch_size in batch_sizes:
        first, whole = statistics.median(firsts[batch_size]), statistics.median(wholes[batch_size])
        rates.append(
            SamplingRate(
                batch_size=batch_size,
                whole_tokens_per_second=batch_size * new_tokens / whole,
                decode_tokens_per_second=batch_size * (new_tokens - 1) / (whole - first),
                first_token_seconds=first,
            )
        )
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    add = parser.add_argument
    add("--model", default="smollm2-135m", metavar="REF", help="default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8, 16, 32], metavar="COUNT")
    add("--contexts", type=int, nargs="+", default=[64, 512], metavar="TOKENS")
    add("--new-tokens", type=int, default=40, metavar="COUNT", help="default: %(default)s")
    add("--lora-rank", type=int, metavar="RANK", help="sample under an adapter of this rank")
    add("--rounds", type=int, default=3, metavar="COUNT", help="default: %(default)s")
    arguments = parser.parse_args()

    model = load_model(arguments.model, compute_dtype=arguments.dtype)
    adapter = None
    if arguments.lora_rank is not None:
        spec = LoraSpec(
            rank=arguments.lora_rank, alpha=32.0, target_modules=ADAPTER_TARGETS, seed=0
        )
        adapter = scale_adapter(init_adapter(model.config, spec, "float32"), spec.scale)
    print(
        f"{model.name}, {arguments.dtype}, on {jax.devices()[0].device_kind}; "
        f"{arguments.new_tokens} new tokens, medians of {arguments.rounds} rounds"
    )
    print(f"{'context':>8}{'batch':>8}{'decode tok/s':>14}{'whole tok/s':>14}{'first token s':>15}")
    for context_tokens in arguments.contexts:
        for rate in measure_sampling(
            model,
            arguments.batch_sizes,
            arguments.new_tokens,
            arguments.rounds,
            context_tokens=context_tokens,
            adapter=adapter,
        ):
            print(
                f"{context_tokens:>8}{rate.batch_size:>8}{rate.decode_tokens_per_second:>14.1f}"
                f"{rate.whole_tokens_per_second:>14.1f}{rate.first_token_seconds:>15.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
