"""`python -m benchmarks.codec`: what a chunk costs to write, to read and to send.

Beside it, in turn, the straightforward way: messages built from Python lists. Needs no model.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from client.parsing import parse_rows
from client.teacher import TeacherClient
from distill.rows import ScoredRows
from distill.rpc.server import RunningServer, Service
from distill.v1 import scoring_pb2, tensor_pb2
from distill.v1.teacher_service_pb2 import DESCRIPTOR
from distill.v1.teacher_service_pb2 import TeacherServiceStreamTopKResponse as Response
from distill.wire import rows_to_bytes

_SECONDS_PER_MEASUREMENT = 0.05
_STREAMED_BYTES = 40 << 20
_VOCAB_SIZE = 49152

_LARGEST_RESULT_BYTES = 16 << 20

_Writer = Callable[[ScoredRows], Response]


@dataclass(frozen=True, kw_only=True)
class CodecTimes:
    """Medians over the rounds, for one chunk of [P, K]."""

    row_count: int
    """P."""

    chunk_byte_count: int
    """Bytes of the chunk on the wire."""

    lists_encode_seconds: float
    """The message from Python lists."""

    encode_seconds: float
    """The message by the codec: its bytes, and protobuf's parse of them."""

    lists_write_seconds: float
    """The bytes, from the message from Python lists."""

    write_seconds: float
    """The bytes by the codec."""

    decode_seconds: float
    """Bytes to arrays: parse, check, copy."""

    copy_seconds: float
    """A plain copy of as many bytes: the speed of memory."""

    lists_stream_bytes_per_second: float
    """A stream of chunks over loopback whose messages are built from Python lists, decoded to
    arrays by the client."""

    stream_bytes_per_second: float
    """The same with the codec."""

    @property
    def encode_ratio(self) -> float:
        """How many times as fast as from Python lists a message is made."""
        return self.lists_encode_seconds / self.encode_seconds

    @property
    def write_ratio(self) -> float:
        """How many times as fast as from Python lists the bytes are made."""
        return self.lists_write_seconds / self.write_seconds

    def share_of_scoring(self, rows_per_second: float) -> float:
        """Encoding, transport and decoding beside the time that scoring the rows takes."""
        stream_seconds = self.chunk_byte_count / self.stream_bytes_per_second
        return stream_seconds / (self.row_count / rows_per_second)


def measure_codec(row_count: int = 256, top_k: int = 100, rounds: int = 5) -> CodecTimes:
    """Measure everything in turn, `rounds` times.

    Server and client of the streams share this process and its interpreter lock; as two processes
    they overlap.

    Args:
        row_count: P of the chunk.
        top_k: K of the chunk.
        rounds: of which the medians are taken.
    """
    _settle_allocator()
    chunk = _random_chunk(row_count, top_k)
    encoded = rows_to_bytes(chunk)
    if _from_lists(chunk).SerializeToString(deterministic=True) != encoded:
        raise AssertionError("the codec's bytes are not protobuf's")
    source = np.frombuffer(encoded, np.uint8)
    seconds = _medians(
        {
            "lists_encode": lambda: _from_lists(chunk),
            "encode": lambda: scoring_pb2.TopKChunk.FromString(rows_to_bytes(chunk)),
            "lists_write": lambda: _from_lists(chunk).SerializeToString(),
            "write": lambda: rows_to_bytes(chunk),
            "decode": lambda: parse_rows(scoring_pb2.TopKChunk.FromString(encoded)),
            "copy": source.copy,
        },
        rounds,
    )
    with _Loopback(chunk) as loopback:
        speeds = [
            (loopback.bytes_per_second(_response_from_lists), loopback.bytes_per_second(_response))
            for _ in range(rounds)
        ]
    lists_speeds, codec_speeds = zip(*speeds, strict=True)
    return CodecTimes(
        row_count=row_count,
        chunk_byte_count=len(encoded),
        lists_encode_seconds=seconds["lists_encode"],
        encode_seconds=seconds["encode"],
        lists_write_seconds=seconds["lists_write"],
        write_seconds=seconds["write"],
        decode_seconds=seconds["decode"],
        copy_seconds=seconds["copy"],
        lists_stream_bytes_per_second=statistics.median(lists_speeds),
        stream_bytes_per_second=statistics.median(codec_speeds),
    )


def _settle_allocator() -> None:
    """Bring glibc into the state of a service that has scored.

    Having freed a block as large as a result, it keeps memory of the size of a chunk; before, it
    returns it to the kernel after every message and pays for each page again.
    """
    np.ones(_LARGEST_RESULT_BYTES, np.uint8)


def _random_chunk(row_count: int, top_k: int) -> ScoredRows:
    random = np.random.default_rng(0)

    def floats(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal(shape, np.float32)

    return ScoredRows(
        prompt_index=0,
        first_row=1,
        token_ids=random.integers(0, _VOCAB_SIZE, (row_count, top_k), np.int32),
        log_probs=floats(row_count, top_k),
        prompt_log_probs=floats(row_count),
        tail_log_probs=floats(row_count),
        entropies=floats(row_count),
    )


def _from_lists(chunk: ScoredRows) -> scoring_pb2.TopKChunk:
    def floats(array: NDArray[np.float32]) -> tensor_pb2.FloatTensor:
        # Faster than from the array itself, whose items arrive as NumPy scalars.
        return tensor_pb2.FloatTensor(shape=array.shape, values=array.ravel().tolist())

    return scoring_pb2.TopKChunk(
        prompt_index=chunk.prompt_index,
        first_row=chunk.first_row,
        token_ids=tensor_pb2.Int32Tensor(
            shape=chunk.token_ids.shape, values=chunk.token_ids.ravel().tolist()
        ),
        log_probs=floats(chunk.log_probs),
        prompt_log_probs=floats(chunk.prompt_log_probs),
        tail_log_probs=floats(chunk.tail_log_probs),
        entropies=floats(chunk.entropies),
    )


def _response_from_lists(chunk: ScoredRows) -> Response:
    return Response(chunk=_from_lists(chunk))


def _response(chunk: ScoredRows) -> Response:
    response = Response()
    response.chunk.MergeFromString(rows_to_bytes(chunk))
    return response


def _medians(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    counts = {name: _repetitions(action) for name, action in actions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                action()
            seconds[name].append((time.perf_counter() - started) / counts[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def _repetitions(action: Callable[[], object]) -> int:
    action()
    started = time.perf_counter()
    action()
    return max(1, int(_SECONDS_PER_MEASUREMENT / (time.perf_counter() - started)))


class _Loopback:
    """A teacher that sends one chunk over and over, and its client; a context manager."""

    def __init__(self, chunk: ScoredRows) -> None:
        self._chunk = chunk
        self._writer: _Writer = _response
        self._count = max(1, _STREAMED_BYTES // len(rows_to_bytes(chunk)))

    def __enter__(self) -> "_Loopback":
        self._server = RunningServer(host="127.0.0.1", port=0)
        service_name = DESCRIPTOR.services_by_name["TeacherService"].full_name
        method = grpc.unary_stream_rpc_method_handler(
            self._stream_top_k, response_serializer=Response.SerializeToString
        )
        handler = grpc.method_handlers_generic_handler(service_name, {"StreamTopK": method})
        self._server.start(
            Service(
                full_name=service_name,
                description="one chunk, over and over",
                register=lambda server: server.add_generic_rpc_handlers((handler,)),
                close=lambda _grace_seconds: None,
            )
        )
        self._client = TeacherClient(self._server.address)
        self.bytes_per_second(_response)  # the first call connects
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()
        self._server.stop(grace_seconds=0)

    def _stream_top_k(self, request: bytes, context: grpc.ServicerContext) -> Iterator[Response]:  # noqa: ARG002
        return (self._writer(chunk) for chunk in itertools.repeat(self._chunk, self._count))

    def bytes_per_second(self, writer: _Writer) -> float:
        """Read one stream to its end; the chunks are decoded as they come."""
        self._writer = writer
        started = time.perf_counter()
        received = sum(
            chunk.token_ids.nbytes + chunk.log_probs.nbytes + 3 * chunk.entropies.nbytes
            for chunk in self._client.stream_top_k([[0, 1]], self._chunk.token_ids.shape[1])
        )
        return received / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=256, metavar="COUNT", help="default: %(default)s")
    add("--top-k", type=int, default=100, metavar="K", help="default: %(default)s")
    add("--rounds", type=int, default=5, metavar="COUNT", help="default: %(default)s")
    arguments = parser.parse_args()
    times = measure_codec(arguments.rows, arguments.top_k, arguments.rounds)
    print(
        f"a chunk of [{arguments.rows}, {arguments.top_k}], {times.chunk_byte_count / 1e3:.0f} kB; "
        f"medians of {arguments.rounds} rounds\n"
        f"                    from lists       codec   ratio\n"
        f"message      us  {times.lists_encode_seconds * 1e6:13.1f} "
        f"{times.encode_seconds * 1e6:11.1f} {times.encode_ratio:7.0f}\n"
        f"bytes        us  {times.lists_write_seconds * 1e6:13.1f} "
        f"{times.write_seconds * 1e6:11.1f} {times.write_ratio:7.0f}\n"
        f"decode       us  {'':13} {times.decode_seconds * 1e6:11.1f}\n"
        f"plain copy   us  {'':13} {times.copy_seconds * 1e6:11.1f}\n"
        f"stream     MB/s  {times.lists_stream_bytes_per_second / 1e6:13.1f} "
        f"{times.stream_bytes_per_second / 1e6:11.1f} "
        f"{times.stream_bytes_per_second / times.lists_stream_bytes_per_second:7.1f}\n"
        "stream's share of scoring: "
        + ", ".join(
            f"{times.share_of_scoring(rate):.2%} at {rate:,} rows/s" for rate in (500, 50_000)
        )
    )


if __name__ == "__main__":
    main()
