"""Products of float32 arrays are asked for in float32."""

import jax
import jax.numpy as jnp

from distill.engine.precision import use_full_precision
from distill.ops.logits import Head, head_logits


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
