"""What kind of device the programs are compiled for."""

import jax


def is_on_cpu() -> bool:
    """Whether it is a CPU."""
    return jax.default_backend() == "cpu"
