"""What the benchmark and its workers say to each other: JSON lines over stdin and stdout.

Requests are {"op": "load" | "prepare" | "run", ...}; every one is answered by one line, which holds
"error" when it failed. Arrays travel as files. Imports NumPy alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SCORE, TRAIN, SAMPLE = "score", "train", "sample"

SCORING_SEQUENCES = 8
TRAINING_SEQUENCES = 4
"""Sequences of a sub-batch."""

LOGIT_BYTES = {SCORE: 2 << 30, TRAIN: 1 << 30}
"""Fewer sequences in a sub-batch where the float32 logits would be larger than this."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A workload as it is sent."""

    kind: str
    """SCORE, TRAIN or SAMPLE."""

    sequences: list[NDArray[np.int32]]
    """Each [T]."""

    options: dict[str, Any]
    """SCORE: score_from (a list), top_k. TRAIN: is_hard, is_lora, adapter (a PEFT directory), rank,
    alpha. SAMPLE: new_tokens."""

    targets: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    """TRAIN: ids [T, K], values [T, K] and tails [T] of each sequence."""

    def write(self, path: Path) -> dict[str, Any]:
        """Write the arrays; returns the rest, to be sent."""
        arrays: dict[str, NDArray[Any]] = {"tokens": np.concatenate(self.sequences)}
        arrays |= {name: np.concatenate(parts) for name, parts in self.targets.items()}
        np.savez(path, **arrays)  # type: ignore[arg-type]  # the stubs take the names for options
        lengths = [len(sequence) for sequence in self.sequences]
        return {"kind": self.kind, "lengths": lengths, "options": self.options, "path": str(path)}

    @classmethod
    def read(cls, sent: dict[str, Any]) -> "Task":
        """The inverse of `write`."""
        bounds = np.cumsum(sent["lengths"])[:-1]
        with np.load(sent["path"], allow_pickle=False) as arrays:
            split = {name: np.split(arrays[name], bounds) for name in arrays.files}
        sequences = split.pop("tokens")
        return cls(kind=sent["kind"], sequences=sequences, options=sent["options"], targets=split)

    def sub_batches(self, vocab_size: int) -> Iterator[slice]:
        """Consecutive sequences, in the order given, as many as memory reasonably allows."""
        most = SCORING_SEQUENCES if self.kind == SCORE else TRAINING_SEQUENCES
        longest = max(len(sequence) for sequence in self.sequences)
        fitting = LOGIT_BYTES[self.kind] // (4 * vocab_size * longest)
        size = max(1, min(most, fitting))
        for start in range(0, len(self.sequences), size):
            yield slice(start, min(start + size, len(self.sequences)))


class Worker(Protocol):
    """What a worker implements."""

    def load(self, directory: str, dtype: str, threads: int) -> None:
        """Load a model."""

    def prepare(self, task: Task) -> None:
        """Keep a task and warm up for it."""

    def run(self) -> float:
        """Do the task; returns its digest: the mean of the top-K log-probs, or of the losses."""


def padded(rows: list[NDArray[Any]], length: int | None = None) -> NDArray[Any]:
    """[T, ...] arrays as one, zeros after them."""
    longest = length or max(len(row) for row in rows)
    result = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return result


def peak_process_bytes() -> int:
    """Most memory that this process has held, 0 where the system does not say."""
    # Not getrusage's figure: a new process inherits that of the one that started it.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def serve(make_worker: Callable[[], Worker]) -> None:
    """Answer requests until stdin ends."""
    # Libraries print; only answers may reach the other end.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if worker is None:
                worker = make_worker()
            if request["op"] == "load":
                worker.load(request["directory"], request["dtype"], request["threads"])
            elif request["op"] == "prepare":
                worker.prepare(Task.read(request["task"]))
            else:
                started = time.perf_counter()
                digest = worker.run()
                answer = {"seconds": time.perf_counter() - started, "digest": digest}
                answer["peak_process_bytes"] = peak_process_bytes()
        except Exception as error:  # whatever it is, the benchmark goes on without this side
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answer), file=answers)
