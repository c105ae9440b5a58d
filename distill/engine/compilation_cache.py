"""Compiled code on disk, so that the second start of a service is quick."""

from pathlib import Path

import jax

from distill.models.references import model_cache


def enable_compilation_cache(cache_dir: Path | None) -> None:
    """Keep compiled code in the cache directory from now on, beside the converted models.

    Call it before anything is compiled. The code is keyed by program, compiler and device, so
    services and versions can share the directory.

    Args:
        cache_dir: as in `load_model`.
    """
    directory = model_cache(cache_dir).with_name("compiled")
    settings: dict[str, object] = {
        "jax_compilation_cache_dir": str(directory),
        # Everything: a service compiles many small functions, and reading one back is quicker.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
