"""A gated delta-net layer beside one of full attention, at the sizes of Qwen3.5-0.8B.

A delta-net layer takes the same time for every token, one of attention more for each further one:
the first must pay from some length on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.bench import NAIVE, OURS, PEAK, Bench, seconds_by_side, tokens_per_second
from benchmarks.programs import watch_programs
from benchmarks.results import CaseResult
from benchmarks.rounds import measure, wall_seconds
from distill.network.attention import Attention, PackPlace
from distill.network.config import ModelConfig
from distill.network.delta_net import DeltaNet
from distill.network.delta_net_config import DeltaNetConfig
from distill.network.layer_kinds import LayerKind
from distill.network.packing import rows_as_segments
from distill.network.rotary import rotary_angles

LENGTHS = (1024, 4096, 8192)
"""T: at the first delta-net may take twice the time of attention, beyond the second it must win."""

CONFIG = ModelConfig(
    family="qwen3_5_text",
    vocab_size=248320,
    hidden_size=1024,
    intermediate_size=3584,
    layer_count=2,
    head_count=8,
    key_value_head_count=2,
    head_dim=256,
    norm_epsilon=1e-6,
    rope_theta=1e7,
    rotary_width=64,
    query_key_norm=True,
    zero_centered_norms=True,
    attention_output_gate=True,
    period=(LayerKind(name="linear", mixer="delta_net"), LayerKind(name="full")),
    delta_net=DeltaNetConfig(
        key_head_count=16, value_head_count=16, key_width=128, value_width=128, tap_count=4
    ),
    tied_head=True,
    max_position_count=262144,
)

Layer = Callable[[], jax.Array]


def delta_net_layer(bench: Bench) -> list[CaseResult]:
    """Two results for each length: the mixers of a layer, forward, and with all gradients."""
    return [
        _measure(bench, length, is_gradient=is_gradient)
        for length in LENGTHS
        for is_gradient in (False, True)
    ]


def _measure(bench: Bench, length: int, *, is_gradient: bool) -> CaseResult:
    name = f"delta_net_{length}_{'gradient' if is_gradient else 'forward'}"
    bench.log(f"{name}: compiling")
    linear, full = CONFIG.kinds
    own = _layer(DeltaNet(CONFIG, linear, jnp.float32, rngs=nnx.Rngs(0)), length, is_gradient)
    attention = _layer(Attention(CONFIG, full, jnp.float32, rngs=nnx.Rngs(0)), length, is_gradient)
    with watch_programs() as programs:
        own()
    with watch_programs() as other_programs:
        attention()
    bench.log(f"{name}: timing")
    sides = {
        PEAK: bench.peak.run,
        OURS: wall_seconds(lambda: own().block_until_ready()),
        NAIVE: wall_seconds(lambda: attention().block_until_ready()),
    }
    bench.peak.run()
    timings = measure(sides, bench.plan)
    return CaseResult(
        name=name,
        model=bench.model.name,
        ratio_naive=timings.ratio(NAIVE, OURS),
        peak_bytes=programs.temporary_bytes,
        naive_peak_bytes=other_programs.temporary_bytes,
        rounds=timings.round_count,
        token_count=length,
        peak_flops_per_second=bench.peak.flops / timings.median(PEAK),
        seconds=seconds_by_side(timings),
        tokens_per_second=tokens_per_second(timings, length),
        note=(
            f"the mixer of one layer with its projections, one sequence of {length} tokens, "
            "float32, sizes of Qwen3.5-0.8B; naive: that of a layer of full attention; memory is "
            "that of temporaries"
        ),
    )


def _layer(mixer: Any, length: int, is_gradient: bool) -> Layer:
    """The mixer over one sequence, or the sum of all gradients of the mean of its squares."""
    graph, parameters = nnx.split(mixer)
    segments = rows_as_segments(1, length)
    place = PackPlace(segments, rotary_angles(CONFIG, segments.positions), None)
    hidden = jax.random.normal(jax.random.key(1), (1, length, CONFIG.hidden_size))

    def forward(hidden: jax.Array, parameters: Any) -> jax.Array:
        mixed: jax.Array = nnx.merge(graph, parameters).packed(hidden, place, {})
        return mixed

    def gradient(hidden: jax.Array, parameters: Any) -> jax.Array:
        gradients = jax.grad(lambda *both: (forward(*both) ** 2).mean(), argnums=(0, 1))(
            hidden, parameters
        )
        # One number: no gradient is computed in vain, and none is handed out.
        return jnp.stack([leaf.sum() for leaf in jax.tree.leaves(gradients)])

    compiled = jax.jit(gradient if is_gradient else forward)
    return lambda: compiled(hidden, parameters)
