"""Compiled functions that know how often they were compiled."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

_LOGGER = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")


class CompiledFunctions:
    """A group of `jax.jit` functions with one count of their compilations."""

    def __init__(self) -> None:
        self.compile_count = 0

    def add(
        self,
        function: Callable[Arguments, ResultT],
        *,
        static_argnames: str | tuple[str, ...] = (),
        donate_argnames: str | tuple[str, ...] = (),
    ) -> Callable[..., ResultT]:
        """`jax.jit` of the function; the options are those of `jax.jit`."""

        @wraps(function)
        def traced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> ResultT:
            # Python only runs this while JAX traces a shape that it has no code for.
            self.compile_count += 1
            # Logged before it compiles: a first answer takes long, and the log should say why.
            _LOGGER.info(
                "program %d, %s for new shapes: compiling it, unless the compilation cache has it",
                self.compile_count,
                function.__name__,
            )
            return function(*args, **kwargs)

        return jax.jit(traced, static_argnames=static_argnames, donate_argnames=donate_argnames)
