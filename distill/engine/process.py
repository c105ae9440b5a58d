"""How a service's process is set up: its memory, its precision, its caches, and its engine."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from distill.engine.device_queue import DeviceQueue
from distill.engine.sampler import Sampler
from distill.engine.scorer import Scorer
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.models.loading import LoadedModel, load_model
from distill.models.references import model_cache

_PACKS_OF_A_CALL = 2
"""Full packs of the scorer that a call of the scheduler may fill."""

# Parameters of glibc's mallopt, by their numbers in malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_NEVER = -1
"""As a threshold, the largest size there is, for glibc reads it as an unsigned number of 64 bits.
The largest int would leave out blocks over 2 GiB."""

_LARGEST_OLD_THRESHOLD = 32 << 20
"""The largest that older versions of glibc accept: half of the largest heap of an arena."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One model, and what computes under its weights on the process's device."""

    model: LoadedModel
    """The model."""

    queue: DeviceQueue
    """Owns the device: whatever computes goes through it."""

    scoring: ScoringScheduler
    """Scores prompts."""

    sampler: Sampler
    """Continues prompts."""


def start_engine(
    reference: str, *, dtype: str, cache_dir: Path | None, mask_padded_vocabulary: bool
) -> Engine:
    """Set up the process, load a model, and make what both services compute with.

    Args:
        reference: the model, as in `load_model`.
        dtype: the compute dtype, as in `load_model`.
        cache_dir: where converted models and compiled code are kept, as in `load_model`.
        mask_padded_vocabulary: as in `load_model`.

    Raises:
        ModelError: the model cannot be loaded.
    """
    # First, for what is loaded and compiled before them does not know these settings.
    keep_freed_memory()
    use_full_precision()
    enable_compilation_cache(cache_dir)
    model = load_model(
        reference,
        compute_dtype=dtype,
        cache_dir=cache_dir,
        mask_padded_vocabulary=mask_padded_vocabulary,
    )
    queue = DeviceQueue()
    scorer = Scorer(model)
    scoring = ScoringScheduler(
        queue,
        scorer,
        token_budget=_PACKS_OF_A_CALL * scorer.token_budget,
        shares_prefixes=scorer.shares_prefixes,
    )
    return Engine(model=model, queue=queue, scoring=scoring, sampler=Sampler(model))


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next call; does nothing elsewhere.

    XLA's CPU backend allocates the temporaries of every call anew: a chunk of logits, the
    activations of a training step. By default glibc returns such blocks to the kernel, which zeroes
    every page before it hands it out again. On virtual machines this has cost as much time as the
    matrix product that filled the block. The price is that the process stays as large as it was at
    its largest.

    On threads other than the first, glibc takes blocks over 64 MiB from the kernel all the same.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # not glibc
    # Where an older version refuses the first, its threshold would stay at the default of 128 KiB.
    if not mallopt(_M_MMAP_THRESHOLD, _NEVER):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_OLD_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)


def use_full_precision() -> None:
    """From now on, no matrix product rounds its float32 operands.

    By default, GPUs round them to TF32, which has three digits, and TPUs round them to bfloat16.
    What this project computes in float32 needs all its digits: logits, norms, routing, sums of log
    decays. Products of bfloat16 operands, which `--dtype auto` chooses on accelerators, stay as
    they are; so do all products on a CPU.
    """
    jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]


def enable_compilation_cache(cache_dir: Path | None) -> None:
    """Keep compiled code on disk from now on, so that the second start of a service is quick.

    Call it before anything is compiled. JAX finds the code by program, compiler and device, so
    services and versions can share the directory.

    Args:
        cache_dir: as in `load_model`; the code lies beside the converted models.
    """
    directory = model_cache(cache_dir).with_name("compiled")
    settings: dict[str, object] = {
        "jax_compilation_cache_dir": str(directory),
        # No lower bound: a service compiles many small functions, and reading one back is quicker.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]  # JAX leaves it untyped
