"""Whether a call that has room left should wait a moment for more streams to join it."""

from distill.engine.weights import ModelWeights

_WeightsId = tuple[int, int]

_MOST_REMEMBERED_WEIGHTS = 64
"""Runs and their versions come and go, so what is known of their streams is forgotten at times."""


class ArrivalEstimator:
    """Expects as many streams as were open at once since the call before.

    Clients that score one batch after the other come back a moment after they were answered, all of
    them together. Without a wait, the first of them would get a call of its own each time. A client
    that is alone never waits, for its streams follow one another. After a wait that no stream
    joined, expect only the streams that are here.

    Pure bookkeeping: the caller tells the time and how many streams there are.
    """

    def __init__(self, longest_wait_seconds: float) -> None:
        self._longest_wait_seconds = longest_wait_seconds
        self._most_open: dict[_WeightsId, int] = {}
        """Most streams open at once since the last call under these weights. The identity of
        weights that are gone may come again with others; that costs one wait at most."""
        self._wait_end: float | None = None
        """When the wait for the next call ends; None: none has begun."""

    def stream_opened(self, weights: ModelWeights, open_count: int) -> None:
        """A stream began; with it, so many are open under these weights."""
        key = _weights_id(weights)
        self._most_open[key] = max(self._most_open.get(key, 0), open_count)

    def call_started(self, weights: ModelWeights, open_count: int) -> None:
        """A call began; so many streams are open under its weights, part of it or not."""
        if len(self._most_open) > _MOST_REMEMBERED_WEIGHTS:
            self._most_open.clear()
        self._most_open[_weights_id(weights)] = open_count
        self._wait_end = None

    def wait_seconds(self, weights: ModelWeights, ready_count: int, now: float) -> float:
        """How long the next call should wait at most; 0: not at all.

        Args:
            weights: what the call runs under.
            ready_count: streams that it could take jobs of now.
            now: the time, in seconds.
        """
        if ready_count >= self._most_open.get(_weights_id(weights), 0):
            return 0.0
        if self._wait_end is None:
            self._wait_end = now + self._longest_wait_seconds
        return max(0.0, self._wait_end - now)


def _weights_id(weights: ModelWeights) -> _WeightsId:
    return id(weights.parameters), id(weights.adapter)
