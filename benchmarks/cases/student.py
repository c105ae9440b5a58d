"""Training: the loss and the gradient of a batch, with a target at every position."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.agreement import check_close, check_gradients, check_noise
from benchmarks.bench import Bench, Comparison, compare
from benchmarks.engine import (
    LORA,
    MICRO_BATCH_TOKENS,
    OwnTrainer,
    first_sequences,
    training_batch,
)
from benchmarks.naive import NaiveTrainer, training_sequences
from benchmarks.naive_model import in_float32, naive_weights
from benchmarks.peers.protocol import TRAIN, Task
from benchmarks.results import CaseResult
from benchmarks.work import FULL_PASSES, LORA_PASSES, Work
from benchmarks.workloads import TrainingLoad, ragged_lengths, training_load
from distill.models.write_directory import write_peft_adapter


def lora_soft_dense(bench: Bench) -> list[CaseResult]:
    """An adapter, the KL with the tail, sequences of one length."""
    return _dense(bench, "student_lora_soft_dense")


def lora_hard_dense(bench: Bench) -> list[CaseResult]:
    """The same with one target token per position."""
    return _dense(bench, "student_lora_hard_dense", is_hard=True)


def lora_soft_k100_dense(bench: Bench) -> list[CaseResult]:
    """The same with a support of 100."""
    return _dense(bench, "student_lora_soft_k100_dense", top_k=100)


def full_soft_dense(bench: Bench) -> list[CaseResult]:
    """All weights."""
    return _dense(bench, "student_full_soft_dense", is_lora=False)


def full_hard_dense(bench: Bench) -> list[CaseResult]:
    """All weights, one target token per position."""
    return _dense(bench, "student_full_hard_dense", is_hard=True, is_lora=False)


def lora_soft_ragged(bench: Bench) -> list[CaseResult]:
    """An adapter, sequences of log-uniform lengths."""
    return _ragged(bench, "student_lora_soft_ragged")


def lora_hard_ragged(bench: Bench) -> list[CaseResult]:
    """The same with one target token per position."""
    return _ragged(bench, "student_lora_hard_ragged", is_hard=True)


def full_soft_ragged(bench: Bench) -> list[CaseResult]:
    """All weights, sequences of log-uniform lengths."""
    return _ragged(bench, "student_full_soft_ragged", is_lora=False)


def _dense(
    bench: Bench,
    name: str,
    *,
    is_hard: bool = False,
    is_lora: bool = True,
    top_k: int | None = None,
) -> list[CaseResult]:
    load = _load(bench, bench.sizes.dense_lengths, is_hard=is_hard, top_k=top_k)
    return [_train(bench, name, load, is_lora=is_lora, note="sequences of one length")]


def _ragged(
    bench: Bench, name: str, *, is_hard: bool = False, is_lora: bool = True
) -> list[CaseResult]:
    sizes = bench.sizes
    lengths = ragged_lengths(
        sizes.ragged_sequences, shortest=sizes.ragged_shortest, longest=sizes.ragged_longest
    )
    load = _load(bench, lengths, is_hard=is_hard)
    note = (
        f"{len(lengths)} sequences, log-uniform {sizes.ragged_shortest}-{sizes.ragged_longest}, "
        f"{load.token_count} tokens; naive: {training_sequences(load)} at a time, padded to the "
        "longest of all; torch: up to 4 at a time in the given order, padded to their longest"
    )
    peers = ("torch_f32", "torch_bf16")
    return [_train(bench, name, load, is_lora=is_lora, note=note, peers=peers)]


def _load(
    bench: Bench, lengths: Sequence[int], *, is_hard: bool, top_k: int | None = None
) -> TrainingLoad:
    vocab_size = bench.model.loaded.config.vocab_size
    return training_load(lengths, vocab_size, top_k=top_k or bench.sizes.top_k, is_hard=is_hard)


def _train(
    bench: Bench,
    name: str,
    load: TrainingLoad,
    *,
    is_lora: bool,
    note: str,
    peers: tuple[str, ...] = ("torch_f32", "torch_bf16", "peer"),
) -> CaseResult:
    model = bench.model.loaded
    own = OwnTrainer(model, is_lora=is_lora, token_budget=MICRO_BATCH_TOKENS)
    trainable = own.initial_trainable()
    batch = training_batch(load)
    weights = naive_weights(model.config, model.parameters)
    lora_scale = LORA.scale if is_lora else None
    naive = NaiveTrainer(model.config, weights, lora_scale)
    naive_trainable = trainable if is_lora else naive_weights(model.config, trainable)

    def check(whole: tuple[float, Any]) -> None:
        part = first_sequences(load, training_sequences(load))
        is_whole = part.token_count == load.token_count
        loss, gradients = (
            whole if is_whole else own.forward_backward(trainable, training_batch(part))
        )
        naive_loss, expected = naive.forward_backward(naive_trainable, load, first_only=True)
        rows = part.token_count
        check_close("the mean loss", loss / rows, naive_loss / rows, bench.tolerance)
        if not is_lora:
            gradients = naive_weights(model.config, gradients)
        if bench.dtype == "float32":
            check_gradients(_by_name(gradients), _by_name(expected), bench.tolerance)
            return
        wide = NaiveTrainer(model.config, in_float32(weights), lora_scale)
        _, exact = wide.forward_backward(naive_trainable, load, first_only=True)
        check_noise(_by_name(gradients), _by_name(expected), _by_name(exact))

    with tempfile.TemporaryDirectory() as adapter:
        if is_lora:
            write_peft_adapter(trainable, LORA, model.config, bench.model.name, Path(adapter))
        comparison = Comparison(
            name=name,
            ours=lambda: own.forward_backward(trainable, batch),
            naive=lambda: naive.forward_backward(naive_trainable, load),
            check=check,
            digest=lambda result: result[0] / load.token_count,
            task=_task(load, is_lora=is_lora, adapter=adapter),
            peers=peers,
            work=Work(
                body_tokens=load.token_count,
                head_rows=load.token_count,
                passes=LORA_PASSES if is_lora else FULL_PASSES,
            ),
            token_count=load.token_count,
            note=note,
        )
        return compare(bench, comparison)


def _task(load: TrainingLoad, *, is_lora: bool, adapter: str) -> Task:
    return Task(
        kind=TRAIN,
        sequences=list(load.sequences),
        options={
            "is_hard": load.is_hard,
            "is_lora": is_lora,
            "adapter": adapter,
            "rank": LORA.rank,
            "alpha": LORA.alpha,
        },
        targets={
            "ids": list(load.target_ids),
            "values": list(load.target_values),
            "tails": list(load.tail_log_probs),
        },
    )


def _by_name(tree: Any, prefix: str = "") -> dict[str, NDArray[Any]]:
    """The leaves of nested dicts under joined names."""
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    leaves: dict[str, NDArray[Any]] = {}
    for key, value in tree.items():
        leaves |= _by_name(value, f"{prefix}.{key}" if prefix else key)
    return leaves
