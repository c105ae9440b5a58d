"""Every public function of the maths has an example in its docstring, and the example is right."""

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from distill import ops

MODULES = [
    importlib.import_module(f"distill.ops.{module.name}")
    for module in pkgutil.iter_modules(ops.__path__)
]


def public_functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """What the module defines for others; not what it imports."""
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isroutine(inspect.unwrap(function))
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_the_maths_is_found() -> None:
    names = {name for module in MODULES for name in public_functions(module)}
    assert {"head_loss", "jsd", "ppo", "top_k_rows", "draw_tokens", "routed_mlp"} <= names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_has_an_example(module: ModuleType) -> None:
    parser = doctest.DocTestParser()
    without = [
        name
        for name, function in public_functions(module).items()
        if not any(example.want for example in parser.get_examples(function.__doc__ or ""))
    ]
    assert not without


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_are_right(module: ModuleType) -> None:
    # The examples show three digits: the last bits of a float32 differ between devices.
    with np.printoptions(precision=3, suppress=True):
        results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted or not public_functions(module)
