"""The set-up of a service's process: memory, precision, and code that is compiled once."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from distill.engine import process
from distill.engine.process import use_full_precision
from distill.models.loading import LoadedModel
from distill.ops.logits import Head, head_logits

only_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only glibc is told anything"
)

PAGE_FAULTS = """
import resource, sys
import numpy as np
from distill.engine.process import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""
"""Of writing 64 MiB for the second time."""

KEPT_MIB = """
import ctypes, resource, sys
from distill.engine.process import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0])

before = pages()
# A little more than is asserted: the block begins in the room that the heap has left.
block = libc.malloc((3 << 30) + (16 << 20))  # never touched
assert block, "no address space"
libc.free(block)
print((pages() - before) * resource.getpagesize() >> 20)
"""
"""Of the addresses of a block of 3 GiB and a little that was freed."""


def measured(script: str, argument: str) -> int:
    """The number that a script prints, in a process of its own, for its settings last."""
    command = [sys.executable, "-c", script, argument]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@only_glibc
def test_memory_that_was_freed_is_not_fetched_from_the_kernel_again() -> None:
    assert measured(PAGE_FAULTS, "kept") < measured(PAGE_FAULTS, "default") / 4


@only_glibc
def test_a_block_larger_than_an_int_stays_with_the_process_too() -> None:
    assert measured(KEPT_MIB, "default") < 100
    assert measured(KEPT_MIB, "kept") >= 3 << 10


def test_a_service_asks_for_products_that_round_nothing() -> None:
    before = jax.config.jax_default_matmul_precision
    try:
        use_full_precision()
        program = jax.jit(lambda hidden, kernel: head_logits(hidden, Head(kernel))).lower(
            jnp.ones((2, 3)), jnp.ones((5, 3))
        )
        assert "precision = [HIGHEST, HIGHEST]" in program.as_text()
    finally:
        jax.config.update("jax_default_matmul_precision", before)


COMPILED_FILES = """
import sys
from pathlib import Path
import jax
from distill.engine.process import enable_compilation_cache

enable_compilation_cache(Path(sys.argv[1]))
jax.jit(lambda value: value + 1)(1.0)
print(sum(path.is_file() for path in Path(sys.argv[1]).rglob("compiled/*")))
"""


def test_compiled_code_is_kept_under_the_cache_directory(tmp_path: Path) -> None:
    assert measured(COMPILED_FILES, str(tmp_path)) > 0


def test_the_process_is_set_up_before_the_model_is_loaded(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = []
    for step in ("keep_freed_memory", "use_full_precision", "enable_compilation_cache"):
        monkeypatch.setattr(process, step, lambda *_, step=step: steps.append(step))

    def load(reference: str, **options: object) -> LoadedModel:
        steps.append("load_model")
        assert (reference, options["compute_dtype"]) == ("tiny", "float32")
        assert (options["cache_dir"], options["mask_padded_vocabulary"]) == (tmp_path, False)
        return model

    monkeypatch.setattr(process, "load_model", load)
    engine = process.start_engine(
        "tiny", dtype="float32", cache_dir=tmp_path, mask_padded_vocabulary=False
    )
    engine.queue.close()
    assert engine.model is model
    assert steps[-1] == "load_model"
    assert len(steps) == 4
