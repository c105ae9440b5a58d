"""Memory that the process keeps instead of giving it back after every call."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = -1
"""As a threshold: the largest size there is. The largest int would leave out what is over 2 GiB."""

_LARGEST_OLD_THRESHOLD = 32 << 20
"""Half of the largest heap of an arena."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next call; does nothing elsewhere.

    XLA's CPU backend allocates the temporaries of every call anew: a chunk of logits, the
    activations of a training step. By default glibc returns such blocks to the kernel, which then
    hands them out page by page, zeroed. On virtual machines this has cost as much as the matrix
    product that filled them. The process stays as large as it was at its largest.

    On threads other than the first, glibc takes blocks over 64 MiB from the kernel all the same.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # not glibc
    # Older versions refuse a threshold above half a heap; their own would then stay at 128 KiB.
    if not mallopt(_M_MMAP_THRESHOLD, _NEVER):
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_OLD_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
