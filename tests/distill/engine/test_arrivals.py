"""When a call waits for others to join it, and when not."""

from distill.engine.arrivals import ArrivalEstimator
from distill.engine.weights import ModelWeights

WEIGHTS = ModelWeights({"embedding": 0}, adapter=None)
OTHERS = ModelWeights({"embedding": 1}, adapter=None)


def test_a_client_that_is_alone_never_waits() -> None:
    arrivals = ArrivalEstimator(1.0)
    for now in range(5):
        arrivals.stream_opened(WEIGHTS, 1)
        assert arrivals.wait_seconds(WEIGHTS, 1, float(now)) == 0
        arrivals.call_started(WEIGHTS, 1)


def test_clients_that_were_there_together_are_waited_for() -> None:
    arrivals = ArrivalEstimator(1.0)
    arrivals.stream_opened(WEIGHTS, 1)
    arrivals.stream_opened(WEIGHTS, 2)
    arrivals.call_started(WEIGHTS, 2)
    arrivals.stream_opened(WEIGHTS, 1)
    assert arrivals.wait_seconds(WEIGHTS, 1, 5.0) == 1.0
    assert arrivals.wait_seconds(WEIGHTS, 1, 5.75) == 0.25
    assert arrivals.wait_seconds(WEIGHTS, 2, 5.8) == 0


def test_a_stream_that_came_during_a_call_waits_for_those_that_the_call_serves() -> None:
    arrivals = ArrivalEstimator(1.0)
    arrivals.stream_opened(WEIGHTS, 1)
    arrivals.call_started(WEIGHTS, 1)
    arrivals.stream_opened(WEIGHTS, 2)
    assert arrivals.wait_seconds(WEIGHTS, 1, 0.0) == 1.0


def test_after_a_wait_that_no_stream_joined_the_next_call_does_not_wait() -> None:
    arrivals = ArrivalEstimator(1.0)
    arrivals.stream_opened(WEIGHTS, 3)
    arrivals.call_started(WEIGHTS, 3)
    assert arrivals.wait_seconds(WEIGHTS, 1, 0.0) == 1.0
    assert arrivals.wait_seconds(WEIGHTS, 1, 1.5) == 0
    arrivals.call_started(WEIGHTS, 1)
    arrivals.stream_opened(WEIGHTS, 1)
    assert arrivals.wait_seconds(WEIGHTS, 1, 2.0) == 0


def test_streams_under_other_weights_are_not_waited_for() -> None:
    arrivals = ArrivalEstimator(1.0)
    arrivals.stream_opened(OTHERS, 7)
    arrivals.stream_opened(WEIGHTS, 1)
    assert arrivals.wait_seconds(WEIGHTS, 1, 0.0) == 0


def test_what_is_remembered_of_old_weights_is_bounded() -> None:
    arrivals = ArrivalEstimator(1.0)
    weights = [ModelWeights({"embedding": index}, adapter=None) for index in range(1000)]
    for each in weights:
        arrivals.stream_opened(each, 1)
        arrivals.call_started(each, 1)
    assert len(arrivals._most_open) <= 65
