"""What JAX compiled while something ran: how many programs, for how long, and their memory.

Nothing of the engine is read, so that it can change: the counts are those of JAX's own monitoring,
and the memory is the compiled programs' own analysis.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

COMPILATION = "/jax/core/compile/"
BACKEND = "/jax/core/compile/backend_compile_duration"


@dataclass(kw_only=True)
class Programs:
    """The programs that were compiled, complete when the watch is over."""

    compile_count: int = 0
    """Programs, the small ones around an array's birth included."""

    compile_seconds: float = 0.0
    """Tracing, lowering and compiling."""

    peak_bytes: int = 0
    """Most memory of one program: its arguments, the weights among them, results, temporaries."""

    temporary_bytes: int = 0
    """Most temporaries of one program."""


_watching: list[Programs] = []


def _on_duration(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith(COMPILATION):
        for programs in _watching:
            programs.compile_seconds += duration_secs
            programs.compile_count += event == BACKEND


jax.monitoring.register_event_duration_secs_listener(_on_duration)


@contextmanager
def watch_programs() -> Iterator[Programs]:
    """Everything that is compiled inside."""
    programs = Programs()
    # They stay referenced, so that a new program cannot come to lie where one of them was.
    before = _live_programs()
    known = {id(program) for program in before}
    _watching.append(programs)
    try:
        yield programs
    finally:
        _watching.remove(programs)
    for program in _live_programs():
        if id(program) not in known:
            memory = program.get_compiled_memory_stats()
            programs.temporary_bytes = max(programs.temporary_bytes, memory.temp_size_in_bytes)
            programs.peak_bytes = max(programs.peak_bytes, total_bytes(memory))


def total_bytes(memory: Any) -> int:
    """All memory of a program while it runs, by its analysis."""
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _live_programs() -> list[Any]:
    return list(jax.devices()[0].client.live_executables())
