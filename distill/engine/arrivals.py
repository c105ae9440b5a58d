"""Whether a call that has room left should wait a moment for others to join it."""

from distill.engine.weights import ModelWeights

_Key = tuple[int, int]


class Company:
    """Expects as many streams as were there at once since the call before.

    Clients that score one batch after the other come back a moment after they were answered, all
    of them together; without patience the first one would get a call of its own each time. A
    client that is alone never waits, for its streams follow one another, and who has waited in
    vain expects no more than came.

    Pure bookkeeping: the caller tells the time and what is there.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._most: dict[_Key, int] = {}
        """Streams at once since the last call under these weights, by their identity. A stale
        identity costs one patience at most."""
        self._end: float | None = None

    def joined(self, weights: ModelWeights, stream_count: int) -> None:
        """A stream began; with it there are so many under these weights."""
        key = _key(weights)
        self._most[key] = max(self._most.get(key, 0), stream_count)

    def left(self, weights: ModelWeights, stream_count: int) -> None:
        """A call was composed; so many streams are under these weights, in it or not."""
        key = _key(weights)
        # What is known of others is kept as long as it is few: runs and their versions come and go.
        if len(self._most) > 64:
            self._most.clear()
        self._most[key] = stream_count
        self._end = None

    def patience(self, weights: ModelWeights, waiting_count: int, now: float) -> float:
        """Seconds that the next call should wait at most; 0: it should not.

        Args:
            weights: of the call.
            waiting_count: streams that are ready for it.
            now: the time, in seconds.
        """
        if waiting_count >= self._most.get(_key(weights), 0):
            return 0.0
        if self._end is None:
            self._end = now + self._patience_seconds
        return max(0.0, self._end - now)


def _key(weights: ModelWeights) -> _Key:
    return id(weights.parameters), id(weights.adapter)
