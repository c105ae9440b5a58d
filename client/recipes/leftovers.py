"""What an earlier script left in a run."""

import logging

from client.run import StudentRun

_LOGGER = logging.getLogger(__name__)


def drop_leftovers(run: StudentRun) -> None:
    """Drop the gradient of a script that ended before its step, and warn of it.

    It would go silently into the first step of the next training.
    """
    if run.state().accumulated_batches == 0:
        return
    dropped = run.discard_gradient()
    _LOGGER.warning(
        "run %s: dropped a gradient that an earlier script left there: batches %d, rows %d, "
        "examples %d",
        run.run_id,
        dropped.discarded_batches,
        dropped.discarded_rows,
        dropped.discarded_examples,
    )
