"""Memory: temporaries of the head and of a whole training step, by the compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bench import Bench
from benchmarks.engine import LORA, OwnTrainer, training_batch
from benchmarks.naive import batch_loss, row_losses
from benchmarks.naive_model import naive_weights
from benchmarks.programs import watch_programs
from benchmarks.results import CaseResult
from benchmarks.workloads import training_load
from distill.network.config import ModelConfig
from distill.ops.divergences import tail_bucket
from distill.ops.head import HeadSettings, HeadTargets, head_loss
from distill.ops.logits import Head
from distill.ops.objectives import TargetRows


def head_memory(bench: Bench) -> list[CaseResult]:
    """Two results: the head alone, and a step of LoRA training in one call."""
    lengths = bench.sizes.memory_lengths
    config = bench.model.loaded.config
    shape = f"N = {sum(lengths)}, V = {config.vocab_size}, K = {bench.sizes.top_k}"
    bench.log(f"head_memory: compiling the head, {shape}")
    own_head, naive_head = _head_temporaries(config, sum(lengths), bench.sizes.top_k)
    bench.log("head_memory: one step of ours, and the naive one compiled")
    own_step, naive_step = _step_temporaries(bench)
    found = {
        "head_memory": (own_head, naive_head, "value and gradient of the head op"),
        "step_memory": (own_step, naive_step, "a whole LoRA step, without remat"),
    }
    return [
        CaseResult(
            name=name,
            model=bench.model.name,
            ratio_naive=naive / own,
            peak_bytes=own,
            naive_peak_bytes=naive,
            token_count=sum(lengths),
            note=f"temporaries alone: {what}, {shape}; the ratio is theirs by ours",
        )
        for name, (own, naive, what) in found.items()
    ]


def _head_temporaries(config: ModelConfig, row_count: int, top_k: int) -> tuple[int, int]:
    """Bytes of ours and of the naive head: the KL with the tail and its gradient in [N, D]."""

    def own(hidden: Any, kernel: Any, ids: Any, log_p: Any, tail: Any) -> jax.Array:
        targets = HeadTargets(
            ids, TargetRows(log_p, tail, jnp.zeros_like(log_p)), jnp.ones_like(tail)
        )
        settings = HeadSettings(tail_bucket, with_tail=True, kernel_gradient=False)
        return head_loss(hidden, Head(kernel), targets, settings)[0]

    def naive(hidden: Any, kernel: Any, ids: Any, log_p: Any, tail: Any) -> jax.Array:
        log_q = jax.nn.log_softmax(hidden @ kernel.T, axis=-1)
        named = jnp.take_along_axis(log_q, ids, axis=-1)
        return row_losses(named, log_p, tail, is_hard=False).sum()

    width = config.hidden_size
    arguments = (
        _shape((row_count, width), jnp.float32),
        _shape((config.vocab_size, width), jnp.float32),
        _shape((row_count, top_k), jnp.int32),
        _shape((row_count, top_k), jnp.float32),
        _shape((row_count,), jnp.float32),
    )
    sizes = [_temporaries(jax.value_and_grad(head), *arguments) for head in (own, naive)]
    return sizes[0], sizes[1]


def _step_temporaries(bench: Bench) -> tuple[int, int]:
    """Bytes of our largest program of a step, which is run, and of the naive one, which is not."""
    model, lengths = bench.model.loaded, bench.sizes.memory_lengths
    config = model.config
    load = training_load(lengths, config.vocab_size, top_k=bench.sizes.top_k, is_hard=False)
    own = OwnTrainer(model, is_lora=True, token_budget=load.token_count)
    trainable = own.initial_trainable()
    with watch_programs() as programs:
        own.forward_backward(trainable, training_batch(load))

    def step(adapter: Any, weights: Any, batch: Any) -> Any:
        return jax.value_and_grad(
            lambda adapter: batch_loss(config, LORA.scale, adapter, weights, batch, is_hard=False)
        )(adapter)

    rows, length, top_k = len(lengths), max(lengths), bench.sizes.top_k
    batch = {
        "token_ids": _shape((rows, length), jnp.int32),
        "target_ids": _shape((rows, length, top_k), jnp.int32),
        "target_values": _shape((rows, length, top_k), jnp.float32),
        "tail_log_probs": _shape((rows, length), jnp.float32),
        "row_weights": _shape((rows, length), jnp.float32),
    }
    weights = naive_weights(config, model.parameters)
    return programs.temporary_bytes, _temporaries(step, trainable, weights, batch)


def _temporaries(function: Any, *arguments: Any) -> int:
    compiled = jax.jit(function).lower(*arguments).compile()
    memory: Any = compiled.memory_analysis()
    return int(memory.temp_size_in_bytes)


def _shape(extents: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(extents, dtype)  # type: ignore[no-untyped-call]  # JAX's own
