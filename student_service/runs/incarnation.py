"""Epochs that no earlier process of the service has given to a writer.

Runs live in memory, so a restart loses them, and a new run may get the name of a lost one. Late
requests of the lost run's writer may still arrive then. Their epoch is one of the earlier process,
so the new run refuses them.
"""

from pathlib import Path

from distill.files import make_directory, open_file, write_durably

FILE_NAME = ".incarnation"
"""In the directory of runs. No run can have this name, because names do not start with a dot."""

_EPOCHS_OF_A_PROCESS = 1 << 32
"""More than a process can use up: it gives one for each run that is taken over or deleted."""

_MOST_BYTES = 64
"""More than a count has."""


def first_epoch(runs_dir: Path) -> int:
    """The epoch at which this process starts; 1 for the first one on a directory.

    Counts the processes in a file, which is durably written before this returns. The caller holds
    the directory (`directory_lock`).

    Raises:
        OSError: the directory cannot be written to.
        ValueError: the file holds something else.
    """
    make_directory(runs_dir)
    path = runs_dir / FILE_NAME
    try:
        with open_file(path) as file:
            earlier = int(file.read(_MOST_BYTES))
    except FileNotFoundError:
        earlier = 0
    write_durably(path, f"{earlier + 1}\n")
    return 1 + earlier * _EPOCHS_OF_A_PROCESS
