"""What the file system refuses, as errors for the caller: they name no path."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from distill.errors import StorageError, StorageFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the block into an error that the caller may see.

    Args:
        action: what the block does, for the message: "save checkpoint 'first'".

    Raises:
        StorageFullError: the disk, or the user's share of it, is full.
        StorageError: any other OSError.
    """
    try:
        yield
    except OSError as error:
        # Its own text may hold a path.
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        if error.errno in _FULL:
            raise StorageFullError(
                f"cannot {action}: {reason}; delete runs with their checkpoints, or make room "
                "otherwise where the student keeps its runs, and send the request again"
            ) from error
        raise StorageError(
            f"cannot {action}: {reason}; let the student read and write where it keeps its runs, "
            "and send the request again"
        ) from error
