"""Freed memory stays with the process, and products of float32 arrays are float32."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from distill.engine.process import use_full_precision
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
block = libc.malloc(3 << 30)  # never touched
assert block, "no address space"
libc.free(block)
print((pages() - before) * resource.getpagesize() >> 20)
"""
"""Of the addresses of a block of 3 GiB that was freed."""


def measured(script: str, kind: str) -> int:
    """What a script prints, in a process of its own: the setting lasts."""
    command = [sys.executable, "-c", script, kind]
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
