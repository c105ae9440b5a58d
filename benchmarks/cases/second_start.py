"""From the start of a service's process to its first answer: the first time, and again."""

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.bench import NAIVE, OURS, Bench, seconds_by_side
from benchmarks.results import CaseResult
from benchmarks.rounds import measure
from client.services.local import STUDENT_MODULE, TEACHER_MODULE, LocalService
from client.settings import LoraConfig, batch_settings, token_example
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.arrays import Int32Array

TOP_K = 20


def second_start(bench: Bench) -> list[CaseResult]:
    """A teacher that scores a prompt, and a student that trains on it."""
    token_count = bench.sizes.dense_lengths[0]
    vocab_size = bench.model.loaded.config.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocab_size, token_count, dtype=np.int32)
    return [
        _measure(bench, "second_start_teacher", TEACHER_MODULE, partial(_score, prompt)),
        _measure(bench, "second_start_student", STUDENT_MODULE, partial(_train, prompt)),
    ]


def _score(prompt: Int32Array, address: str) -> None:
    with TeacherClient(address, timeout_seconds=600) as teacher:
        teacher.score([prompt], top_k=TOP_K)


def _train(prompt: Int32Array, address: str) -> None:
    example = token_example(prompt[:-1], target_offset=0, token_ids=prompt[1:])
    with StudentClient(address, timeout_seconds=600) as student:
        run = student.create_run("run", lora=LoraConfig(rank=16))
        run.forward_backward([example], batch_settings("cross_entropy"))


def _measure(
    bench: Bench, name: str, module: str, first_answer: Callable[[str], None]
) -> CaseResult:
    bench.log(f"{name}: starting processes with nothing compiled, and again")
    with tempfile.TemporaryDirectory(prefix="distill-start-") as scratch:
        cache, log = Path(scratch) / "cache", Path(scratch) / "log"
        # The model is a directory in Hugging Face form: neither start converts it.
        arguments = ["--model", str(bench.model.directory), "--cache-dir", str(cache)]
        if module == STUDENT_MODULE:
            arguments += ["--runs-dir", str(Path(scratch) / "runs")]

        def start() -> float:
            started = time.perf_counter()
            with LocalService(module, arguments, log_path=log) as service:
                first_answer(service.address)
                return time.perf_counter() - started

        def start_with_nothing_compiled() -> float:
            shutil.rmtree(cache, ignore_errors=True)
            return start()

        # In this order: the second start finds what the first compiled.
        timings = measure({NAIVE: start_with_nothing_compiled, OURS: start}, bench.plan)
    return CaseResult(
        name=name,
        model=bench.model.name,
        ratio_naive=timings.ratio(NAIVE, OURS),
        rounds=timings.round_count,
        seconds=seconds_by_side(timings),
        note=(
            "from the start of the process to its first answer; ours: with the code that an "
            "earlier process compiled; naive: without"
        ),
    )
