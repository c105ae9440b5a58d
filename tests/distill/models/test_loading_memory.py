"""Loading holds the model in its compute dtype, one tensor, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_models import write_tiny_model

MEASURE = """
import json, sys, threading, time
import jax, jax.numpy as jnp
from distill.models import loading
from distill.models.hf_weights import leaves

def resident():
    # Without the pages of the mapped file, which are the system's to drop.
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

directory, dtype = sys.argv[1:]
# What a first load brings with it, code and all, is no model's.
loading.load_model(sys.argv[1] + "/../small", compute_dtype=dtype)
start, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, resident())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
model = loading.load_model(directory, compute_dtype=dtype)
done.set()
watcher.join()
print(json.dumps({
    "peak": max(peak, resident()) - start,
    "model": sum(leaf.nbytes for leaf in leaves(model.parameters)),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_is_the_model_in_its_compute_dtype_and_the_largest_tensor(
    tmp_path: Path, dtype: str
) -> None:
    write_tiny_model(tmp_path / "small")
    directory = write_tiny_model(
        tmp_path / "large", layer_count=8, hidden_size=512, intermediate_size=4096
    )
    largest_tensor = 4 * 512 * 4096
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(output.stdout)
    assert measured["model"] > (100 << 20) * (1.0 if dtype == "float32" else 0.5)
    assert measured["peak"] < measured["model"] + largest_tensor + (6 << 20), measured
