"""The wire codec: chunks of distributions as bytes, against messages from Python lists."""

import importlib
import time
from typing import Any

from benchmarks.bench import Bench
from benchmarks.engine import OwnScorer
from benchmarks.results import CaseResult
from benchmarks.workloads import scoring_load

TOP_K = 100


def codec(bench: Bench) -> list[CaseResult]:
    """The bytes of a chunk, and what a stream of them costs beside scoring its rows."""
    bench.log("codec: writing, reading and streaming chunks")
    try:
        measure_codec: Any = importlib.import_module("benchmarks.codec").measure_codec
    except ModuleNotFoundError:
        bench.log("codec: there is no benchmarks/codec.py")
        return [CaseResult(name="codec", model=bench.model.name, note="not measured")]
    times = measure_codec(top_k=TOP_K, rounds=bench.plan.most_rounds)
    row_count: int = times.row_count
    rows_per_second = _scored_rows_per_second(bench)
    share = times.share_of_scoring(rows_per_second)
    sides = {
        "ours": times.write_seconds,
        "naive": times.lists_write_seconds,
        "ours, as message": times.encode_seconds,
        "naive, as message": times.lists_encode_seconds,
        "decode": times.decode_seconds,
        "plain copy": times.copy_seconds,
    }
    return [
        CaseResult(
            name="codec",
            model=bench.model.name,
            ratio_naive=times.write_ratio,
            rounds=bench.plan.most_rounds,
            token_count=row_count,
            seconds={name: {"median": seconds} for name, seconds in sides.items()},
            tokens_per_second={
                "ours": row_count / times.write_seconds,
                "naive": row_count / times.lists_write_seconds,
            },
            note=(
                f"{row_count} rows, K = {TOP_K}, to bytes; naive: the message from Python lists, "
                f"serialised; as a message {times.encode_ratio:.0f} times as fast; encoding, "
                f"loopback and decoding take {share:.1%} of the time that scoring the rows takes "
                f"({rows_per_second:.0f} rows/s)"
            ),
        )
    ]


def _scored_rows_per_second(bench: Bench) -> float:
    config = bench.model.loaded.config
    load = scoring_load(bench.sizes.dense_lengths, config.vocab_size, top_k=TOP_K)
    own = OwnScorer(bench.model.loaded)
    own.score(load)
    started = time.perf_counter()
    own.score(load)
    return load.row_count / (time.perf_counter() - started)
