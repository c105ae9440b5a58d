"""The layer of experts against its dense form: every token through all experts, masked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.agreement import check_gradients
from benchmarks.bench import (
    NAIVE,
    OURS,
    PEAK,
    Bench,
    fraction_of_peak,
    seconds_by_side,
    tokens_per_second,
)
from benchmarks.programs import watch_programs
from benchmarks.results import CaseResult
from benchmarks.rounds import measure, wall_seconds
from distill.ops.routed_mlp import ExpertKernels, Routing, route, routed_mlp


@dataclass(frozen=True, kw_only=True)
class ExpertSizes:
    """A layer, and how many tokens run through it; a quarter of Qwen3-30B-A3B's."""

    token_count: int = 1024
    """N."""

    hidden_size: int = 1024
    """D."""

    expert_size: int = 512
    """F."""

    expert_count: int = 64
    """E."""

    choice_count: int = 8
    """k."""


Layer = Callable[[jax.Array, Routing, ExpertKernels], jax.Array]


def experts_layer(bench: Bench) -> list[CaseResult]:
    """Three results: a pack forward, the same with the gradient of a frozen layer, and decoding."""
    return [
        _measure(bench, "experts_forward", ExpertSizes(), is_gradient=False),
        _measure(bench, "experts_gradient", ExpertSizes(), is_gradient=True),
        _measure(bench, "experts_decode", ExpertSizes(token_count=8), is_gradient=False),
    ]


def dense_layer(hidden: jax.Array, routing: Routing, kernels: ExpertKernels) -> jax.Array:
    """All tokens through one expert after the other; E / k times the work."""
    rows = jnp.arange(hidden.shape[0])[:, None]
    mask = jnp.zeros((hidden.shape[0], kernels.gate.shape[0]))
    mask = mask.at[rows, routing.experts].set(routing.shares)

    def expert(mixed: jax.Array, scanned: tuple[ExpertKernels, jax.Array]) -> Any:
        kernel, weights = scanned
        gated = jax.nn.silu(hidden @ kernel.gate) * (hidden @ kernel.up)
        return mixed + weights[:, None] * (gated @ kernel.down), None

    mixed: jax.Array
    mixed, _ = lax.scan(expert, jnp.zeros_like(hidden), (kernels, mask.T))
    return mixed


def _measure(bench: Bench, name: str, sizes: ExpertSizes, *, is_gradient: bool) -> CaseResult:
    bench.log(f"{name}: compiling and checking")
    inputs = _inputs(sizes)
    own, naive = (_compiled(layer, is_gradient=is_gradient) for layer in (routed_mlp, dense_layer))
    with watch_programs() as programs:
        value = own(*inputs)
    with watch_programs() as naive_programs:
        expected = naive(*inputs)
    check_gradients({name: np.asarray(value)}, {name: np.asarray(expected)}, bench.tolerance)
    bench.log(f"{name}: timing")
    bench.peak.run()
    timings = measure(
        {
            PEAK: bench.peak.run,
            OURS: wall_seconds(lambda: own(*inputs).block_until_ready()),
            NAIVE: wall_seconds(lambda: naive(*inputs).block_until_ready()),
        },
        bench.plan,
    )
    # Three products forward and, where the experts are frozen, three backward.
    products = 6 if is_gradient else 3
    pair_count = sizes.token_count * sizes.choice_count
    flops = 2 * products * pair_count * sizes.hidden_size * sizes.expert_size
    return CaseResult(
        name=name,
        model=bench.model.name,
        ratio_naive=timings.ratio(NAIVE, OURS),
        fraction_of_peak=fraction_of_peak(timings, flops, bench.peak.flops),
        peak_bytes=programs.temporary_bytes,
        naive_peak_bytes=naive_programs.temporary_bytes,
        rounds=timings.round_count,
        token_count=sizes.token_count,
        peak_flops_per_second=bench.peak.flops / timings.median(PEAK),
        seconds=seconds_by_side(timings),
        tokens_per_second=tokens_per_second(timings, sizes.token_count),
        note=(
            f"one layer, float32, N = {sizes.token_count}, D = {sizes.hidden_size}, "
            f"F = {sizes.expert_size}, E = {sizes.expert_count}, k = {sizes.choice_count}; naive: "
            "every token through all experts, masked; memory is that of temporaries"
        ),
    )


def _inputs(sizes: ExpertSizes) -> tuple[jax.Array, Routing, ExpertKernels]:
    keys = jax.random.split(jax.random.key(0), 5)

    def noise(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape) / math.sqrt(shape[-2])

    count, width, hidden_size = sizes.expert_count, sizes.expert_size, sizes.hidden_size
    kernels = ExpertKernels(
        noise(keys[0], count, hidden_size, width),
        noise(keys[1], count, hidden_size, width),
        noise(keys[2], count, width, hidden_size),
    )
    logits = jax.random.normal(keys[3], (sizes.token_count, count))
    hidden = jax.random.normal(keys[4], (sizes.token_count, hidden_size))
    return hidden, route(logits, sizes.choice_count, is_normalized=True), kernels


def _compiled(layer: Layer, *, is_gradient: bool) -> Callable[..., jax.Array]:
    """The layer, or the gradient of the mean of its squares in the hidden states."""
    if not is_gradient:
        return jax.jit(layer)

    def squares(hidden: jax.Array, routing: Routing, kernels: ExpertKernels) -> jax.Array:
        return (layer(hidden, routing, kernels) ** 2).mean()

    return jax.jit(jax.grad(squares))
