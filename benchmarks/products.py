"""Measures the products of ADR 4 again: `.venv/bin/python -m benchmarks.products`.

For each product it prints GFLOP/s and milliseconds, of the quickest of REPEATS calls.
"""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

REPEATS = 20
TOKENS, HIDDEN, WIDTH, VOCAB = 1024, 576, 1536, 49152
float32 = partial(jnp.matmul, preferred_element_type=jnp.float32)


def cast_float32(left: jax.Array, right: jax.Array) -> jax.Array:
    """The product, summed in float32, in the dtype of its factors."""
    return float32(left, right).astype(left.dtype)


def seconds(function: Callable[..., jax.Array], *inputs: jax.Array) -> float:
    """Of the quickest call."""
    compiled = jax.jit(function)
    compiled(*inputs).block_until_ready()  # compiles
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        compiled(*inputs).block_until_ready()
        times.append(time.perf_counter() - started)
    return min(times)


def report(
    name: str,
    function: Callable[..., jax.Array],
    size: tuple[int, int, int],
    *shapes: tuple[int, int],
) -> None:
    """Print a line for each dtype."""
    rows, inner, columns = size
    for dtype in ("float32", "bfloat16"):
        best = seconds(function, *(jnp.ones(shape, dtype) for shape in shapes))
        rate = 2 * rows * inner * columns / best / 1e9
        print(f"{name:44} {dtype:9} {rate:6.0f} GFLOP/s {best * 1e3:8.1f} ms", flush=True)


def main() -> None:
    """All products of the tables, in their order."""
    narrow, kernel, wide = (TOKENS, HIDDEN), (HIDDEN, WIDTH), (TOKENS, WIDTH)
    size = (TOKENS, HIDDEN, WIDTH)
    report("product, result in the factors' dtype", jnp.matmul, size, narrow, kernel)
    report("product, float32 result", float32, size, narrow, kernel)
    report(
        "product, float32 result, cast afterwards",
        cast_float32,
        size,
        narrow,
        kernel,
    )
    report("gradient of its input", lambda left, right: float32(left, right.T), size, wide, kernel)
    report("gradient of its kernel", lambda left, right: float32(left.T, right), size, narrow, wide)
    for rows in (256, 8):
        size = (rows, HIDDEN, VOCAB)
        head, columns, few = (VOCAB, HIDDEN), (HIDDEN, VOCAB), (rows, HIDDEN)
        report(
            f"head, {rows} rows · kernelᵀ",
            lambda left, right: float32(left, right.T),
            size,
            few,
            head,
        )
        report(f"head, {rows} rows · columns", float32, size, few, columns)
        report(
            f"head, kernel · {rows} rowsᵀ",
            lambda left, right: float32(right, left.T),
            size,
            few,
            head,
        )


if __name__ == "__main__":
    main()
