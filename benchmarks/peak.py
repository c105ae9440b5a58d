"""What the machine can do: the rate of a large float32 matrix product on all cores."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SHAPES = ((2048, 2048, 2048), (1024, 4096, 2048), (4096, 1024, 2048), (1024, 2048, 2048))
"""(rows, inner, columns): large enough to be bound by arithmetic; the quickest one counts."""

REPEATS = 5
"""Products in one measurement, of which the quickest counts: each is over in a tenth of a second,
and the peak is what the machine can do."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The product whose rate is taken for the machine's."""

    shape: tuple[int, int, int]
    """(rows, inner, columns)."""

    run: Callable[[], float]
    """Seconds of one product, the quickest of `REPEATS`."""

    @property
    def flops(self) -> float:
        """Of one product."""
        rows, inner, columns = self.shape
        return 2.0 * rows * inner * columns


def find_peak() -> Peak:
    """Try all shapes and keep the quickest."""
    peaks = [_product(shape) for shape in SHAPES]
    for peak in peaks:
        peak.run()
    return max(peaks, key=lambda peak: peak.flops / peak.run())


def _product(shape: tuple[int, int, int]) -> Peak:
    rows, inner, columns = shape
    left = jax.random.normal(jax.random.key(0), (rows, inner), jnp.float32)
    right = jax.random.normal(jax.random.key(1), (inner, columns), jnp.float32)
    product = jax.jit(jnp.matmul)

    def once() -> float:
        started = time.perf_counter()
        product(left, right).block_until_ready()
        return time.perf_counter() - started

    return Peak(shape=shape, run=lambda: min(once() for _ in range(REPEATS)))
