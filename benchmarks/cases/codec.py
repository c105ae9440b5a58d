"""The wire codec: messages of one model's distributions, written and read."""

import importlib

from benchmarks.bench import Bench
from benchmarks.results import CaseResult


def codec(bench: Bench) -> list[CaseResult]:
    """Ours against messages built from Python lists."""
    try:
        module = importlib.import_module("benchmarks.codec")
    except ModuleNotFoundError:
        bench.log("codec: there is no benchmarks/codec.py yet")
        return [CaseResult(name="codec", model=bench.model.name, note="not measured")]
    raise NotImplementedError(module.__name__)
