"""Programs are counted, and named in the log before they are compiled."""

import jax.numpy as jnp
import pytest

from distill.engine.compiled import CompiledFunctions


def test_each_shape_is_a_program_that_the_log_names_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "distill.engine.compiled")
    compiled = CompiledFunctions()

    def doubled(array):
        return 2 * array

    function = compiled.add(doubled)
    for size in (3, 4, 3, 4):
        assert function(jnp.ones(size)).shape == (size,)
    assert compiled.compile_count == 2
    named = [record.getMessage() for record in caplog.records]
    assert [message.partition(" for ")[0] for message in named] == [
        "program 1, doubled",
        "program 2, doubled",
    ]
