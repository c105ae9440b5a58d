"""Products of float32 arrays are float32, wherever they run."""

import jax


def use_full_precision() -> None:
    """From now on, no product rounds its float32 operands.

    Accelerators would otherwise: to TF32, of three digits, on GPUs, and to bfloat16 on TPUs. What
    asks for float32 needs it: logits, norms, routing, sums of log decays. Products of bfloat16,
    which `--dtype auto` chooses there, are not changed; nor are those of a CPU.
    """
    jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]
