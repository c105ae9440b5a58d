"""The teachers that the student pulls distributions from itself."""

from collections.abc import Callable, Iterable, Mapping

import grpc

from distill.errors import (
    CallEndedError,
    InvalidFieldError,
    LimitExceededError,
    TokenizerMismatchError,
    UnavailableError,
)
from distill.limits import MESSAGE_OVERHEAD_BYTES
from distill.rpc.channel import CHANNEL_OPTIONS
from distill.rpc.deadline import remaining_seconds
from distill.tokenizer import describe_mismatch
from distill.v1 import scoring_pb2, teacher_service_pb2, teacher_service_pb2_grpc
from student_service.edge.teacher_errors import PULL_FIELD, teacher_error

INFO_TIMEOUT_SECONDS = 10.0
"""Longest wait for a teacher to say what it serves."""


class TeacherPool:
    """Connections to the teachers that the service was started with, and to no others."""

    def __init__(self, addresses: Mapping[str, str], *, tokenizer_fingerprint: str) -> None:
        """Args:
        addresses: host:port by name.
        tokenizer_fingerprint: the student's; a teacher with another one is refused.
        """
        self._fingerprint = tokenizer_fingerprint
        self._channels = {
            name: grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
            for name, address in addresses.items()
        }

    @property
    def names(self) -> list[str]:
        """Names of the teachers, sorted."""
        return sorted(self._channels)

    def check_name(self, name: str, field: str) -> None:
        """Raise InvalidFieldError for a teacher that the service was not started with."""
        if name not in self._channels:
            known = ", ".join(self.names) or "none"
            raise InvalidFieldError(field, f"must be one of: {known}; got {name!r}")

    def pull(
        self,
        name: str,
        scoring: scoring_pb2.Scoring,
        context: grpc.ServicerContext,
        *,
        max_bytes: int,
        receive: Callable[[scoring_pb2.TopKChunk, int], None],
    ) -> int:
        """Have a teacher score, and hand on each chunk as it arrives; their size in bytes.

        Args:
            name: of the teacher.
            scoring: what to score.
            context: the call that wants it. The teacher gets what is left of its deadline, and
                stops when the call ends.
            max_bytes: most bytes of all chunks together, each counted with
                `MESSAGE_OVERHEAD_BYTES`.
            receive: takes each chunk and its size in bytes. What it raises passes through and ends
                the teacher's work.

        Raises:
            LimitExceededError: more than `max_bytes`.
            TokenizerMismatchError: its tokenizer is not the student's.
            CallEndedError: the call ended meanwhile.
            DistillError: the teacher refused, or could not answer in time; see `teacher_error`.
        """
        stub = teacher_service_pb2_grpc.TeacherServiceStub(self._channels[name])
        try:
            self._check_pair(name, stub, remaining_seconds(context))
            responses = stub.StreamTopK(
                teacher_service_pb2.TeacherServiceStreamTopKRequest(scoring=scoring),
                timeout=remaining_seconds(context),
            )
            try:
                if not context.add_callback(responses.cancel):
                    raise CallEndedError("the call ended before its targets were pulled")
                return _hand_on(responses, receive, max_bytes)
            finally:
                responses.cancel()  # does nothing where the stream has ended
        except grpc.RpcError as error:
            raise teacher_error(name, error, is_active=context.is_active()) from error

    def close(self) -> None:
        """End all connections."""
        for channel in self._channels.values():
            channel.close()

    def _check_pair(
        self,
        name: str,
        stub: teacher_service_pb2_grpc.TeacherServiceStub,
        timeout_seconds: float | None,
    ) -> None:
        # At each pull, because another teacher may have taken the address since the last one.
        is_ours = timeout_seconds is None or timeout_seconds > INFO_TIMEOUT_SECONDS
        request = teacher_service_pb2.TeacherServiceGetModelInfoRequest()
        try:
            model = stub.GetModelInfo(
                request, timeout=INFO_TIMEOUT_SECONDS if is_ours else timeout_seconds
            ).model
        except grpc.RpcError as error:
            if is_ours and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                # The caller's deadline has not passed, so it must not be told that.
                raise UnavailableError(
                    f"teacher {name!r} did not answer within {INFO_TIMEOUT_SECONDS:g} s"
                ) from error
            raise
        if model.tokenizer_fingerprint != self._fingerprint:
            raise TokenizerMismatchError(
                describe_mismatch(
                    teacher=f"teacher {name!r} ({model.name})",
                    teacher_fingerprint=model.tokenizer_fingerprint,
                    student="the student",
                    student_fingerprint=self._fingerprint,
                )
            )


def _hand_on(
    responses: Iterable[teacher_service_pb2.TeacherServiceStreamTopKResponse],
    receive: Callable[[scoring_pb2.TopKChunk, int], None],
    max_bytes: int,
) -> int:
    byte_count = overhead = 0
    for response in responses:
        # Asked for once: protobuf serialises a message to know its size.
        chunk_bytes = response.chunk.ByteSize()
        byte_count += chunk_bytes
        overhead += MESSAGE_OVERHEAD_BYTES
        if byte_count + overhead > max_bytes:
            raise LimitExceededError(PULL_FIELD, max_bytes, byte_count + overhead, unit="bytes")
        receive(response.chunk, chunk_bytes)
    return byte_count
