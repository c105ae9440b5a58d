"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import numpy as np
from distill.engine.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


MEASURE_LARGE = """
import ctypes, resource, sys
from distill.engine.allocator import keep_freed_memory

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


def page_faults(kind: str) -> int:
    """Of writing 64 MiB for the second time, in a process of its own: the setting lasts."""
    command = [sys.executable, "-c", MEASURE, kind]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told anything")
def test_memory_that_was_freed_is_not_fetched_from_the_kernel_again() -> None:
    assert page_faults("kept") < page_faults("default") / 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told anything")
def test_a_block_larger_than_an_int_stays_with_the_process_too() -> None:
    def kept_mib(kind: str) -> int:
        command = [sys.executable, "-c", MEASURE_LARGE, kind]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert kept_mib("default") < 100
    assert kept_mib("kept") >= 3 << 10
