"""Scoring: the top K of every wanted row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.agreement import check_close, check_noise, check_overlap, check_top_k
from benchmarks.bench import Bench, Comparison, compare
from benchmarks.engine import OwnScorer, OwnScores
from benchmarks.naive import NaiveScorer, ScoredPrompt, scoring_sequences
from benchmarks.naive_model import in_float32, naive_weights
from benchmarks.peers.protocol import SCORE, Task
from benchmarks.results import CaseResult
from benchmarks.work import SCORING_PASSES, Work
from benchmarks.workloads import ScoringLoad, ragged_lengths, scoring_load, shared_prefix_load


def dense(bench: Bench) -> list[CaseResult]:
    """Prompts of one length, all rows."""
    sizes, config = bench.sizes, bench.model.loaded.config
    load = scoring_load(sizes.dense_lengths, config.vocab_size, top_k=sizes.top_k)
    return [_score(bench, "teacher_dense", load, note="prompts of one length, all rows")]


def completion_only(bench: Bench) -> list[CaseResult]:
    """The same prompts, the last quarter of each; beside them all rows."""
    sizes, config = bench.sizes, bench.model.loaded.config
    lengths = sizes.dense_lengths
    whole = scoring_load(lengths, config.vocab_size, top_k=sizes.top_k)
    load = scoring_load(lengths, config.vocab_size, top_k=sizes.top_k, wanted_share=0.25)
    possible = _work(whole).flops(config) / _work(load).flops(config)
    note = (
        "the last quarter of each prompt of teacher_dense; all rows: our engine on teacher_dense "
        f"in the same rounds, which is {possible:.2f} times the work on {bench.model.name}"
    )
    own = OwnScorer(bench.model.loaded)
    beside = {"all rows": lambda: own.score(whole)}
    return [_score(bench, "teacher_completion_only", load, note=note, beside=beside)]


def shared_prefix(bench: Bench) -> list[CaseResult]:
    """A group of completions of one context."""
    sizes, config = bench.sizes, bench.model.loaded.config
    load = shared_prefix_load(
        context_tokens=sizes.context_tokens,
        completion_tokens=sizes.completion_tokens,
        completions=sizes.completions,
        vocab_size=config.vocab_size,
        top_k=sizes.top_k,
    )
    work = Work(
        body_tokens=sizes.context_tokens + sizes.completions * sizes.completion_tokens,
        head_rows=load.row_count,
        passes=SCORING_PASSES,
    )
    note = (
        f"{sizes.completions} completions of {sizes.completion_tokens} tokens of one context of "
        f"{sizes.context_tokens}; alone: our engine, one prompt per request; the peak counts the "
        "context once"
    )
    own = OwnScorer(bench.model.loaded)
    beside = {"alone": lambda: own.score_alone(load)}
    return [_score(bench, "teacher_shared_prefix", load, note=note, work=work, beside=beside)]


def ragged(bench: Bench) -> list[CaseResult]:
    """Prompts of log-uniform lengths, all rows."""
    sizes, config = bench.sizes, bench.model.loaded.config
    lengths = ragged_lengths(
        sizes.ragged_prompts, shortest=sizes.ragged_shortest, longest=sizes.ragged_longest
    )
    load = scoring_load(lengths, config.vocab_size, top_k=sizes.top_k)
    naive_size = scoring_sequences(load, config.vocab_size)
    note = (
        f"{len(lengths)} prompts, log-uniform {sizes.ragged_shortest}-{sizes.ragged_longest}, "
        f"{load.token_count} tokens; naive: {naive_size} at a time, padded to the longest of all; "
        "torch: up to 8 at a time in the given order, padded to their longest"
    )
    # Without skyrl: it pads to the longest of all, as the straightforward path does.
    return [_score(bench, "teacher_ragged", load, note=note, peers=("torch_f32", "torch_bf16"))]


def _score(
    bench: Bench,
    name: str,
    load: ScoringLoad,
    *,
    note: str,
    work: Work | None = None,
    beside: Mapping[str, Callable[[], object]] | None = None,
    peers: tuple[str, ...] = ("torch_f32", "torch_bf16", "peer"),
) -> CaseResult:
    model = bench.model.loaded
    own = OwnScorer(model)
    weights = naive_weights(model.config, model.parameters)
    naive = NaiveScorer(model.config, weights)

    def check(scores: OwnScores) -> None:
        straightforward = naive.score(load, first_only=True)
        if bench.dtype == "float32":
            _check_ranks(scores, straightforward, bench.tolerance)
        else:
            exact = NaiveScorer(model.config, in_float32(weights)).score(load, first_only=True)
            _check_noise(scores, straightforward, exact)
        for index, expected in enumerate(straightforward):
            rows = scores.prompt(index)
            for field in ("prompt_log_probs", "tail_log_probs"):
                mean = float(rows[field].mean())
                check_close(field, mean, float(getattr(expected, field).mean()), bench.tolerance)

    comparison = Comparison(
        name=name,
        ours=lambda: own.score(load),
        naive=lambda: naive.score(load),
        check=check,
        digest=lambda scores: scores.mean_log_prob,
        task=Task(
            kind=SCORE,
            sequences=list(load.prompts),
            options={"score_from": list(load.score_from), "top_k": load.top_k},
        ),
        peers=peers,
        work=work or _work(load),
        token_count=load.token_count,
        beside=beside or {},
        note=note,
    )
    return compare(bench, comparison)


def _check_ranks(
    scores: OwnScores, straightforward: Sequence[ScoredPrompt], tolerance: float
) -> None:
    for index, expected in enumerate(straightforward):
        rows = scores.prompt(index)
        check_top_k(
            rows["token_ids"],
            rows["log_probs"],
            expected.token_ids,
            expected.log_probs,
            tolerance,
        )


def _check_noise(
    scores: OwnScores, straightforward: Sequence[ScoredPrompt], exact: Sequence[ScoredPrompt]
) -> None:
    """Ours must be as near to the float32 result as the straightforward way: the log-probs rank by
    rank, those of the prompts' own tokens, and which tokens have the ranks."""
    ours = [scores.prompt(index) for index in range(len(exact))]
    theirs, wide = ([asdict(prompt) for prompt in side] for side in (straightforward, exact))
    ids, *log_probs = (
        [np.concatenate([prompt[name] for prompt in side]) for side in (ours, theirs, wide)]
        for name in ("token_ids", "log_probs", "prompt_log_probs")
    )
    check_overlap(*ids)
    check_noise(
        *({"ranks": ranks, "own tokens": own} for ranks, own in zip(*log_probs, strict=True))
    )


def _work(load: ScoringLoad) -> Work:
    return Work(body_tokens=load.token_count, head_rows=load.row_count, passes=SCORING_PASSES)
