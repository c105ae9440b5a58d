"""The codec beside messages built from Python lists, in one run."""

import pytest

from benchmarks.codec import CodecTimes, measure_codec


@pytest.fixture(scope="module")
def times() -> CodecTimes:
    return measure_codec(row_count=256, top_k=100, rounds=3)


# Idle, it is more than 100 times: the margin is for a busy machine.
def test_the_codec_is_at_least_five_times_as_fast_as_messages_from_lists(times: CodecTimes) -> None:
    assert times.encode_ratio >= 5
    assert times.write_ratio >= 5


def test_a_stream_is_faster_with_the_codec(times: CodecTimes) -> None:
    assert times.stream_bytes_per_second > times.lists_stream_bytes_per_second


@pytest.mark.slow
def test_a_stream_moves_200_megabytes_per_second(times: CodecTimes) -> None:
    assert times.stream_bytes_per_second >= 200e6
