"""A teacher in this process that follows the contract, and misbehaves where a test asks."""

import threading
import time

import grpc

from distill.errors import UnavailableError
from distill.v1 import teacher_service_pb2, teacher_service_pb2_grpc
from tests.client.fake_model import COMPLETION, fake_model_info, fake_tokenizer, sample, score


class FakeTeacher(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Scores with `row_log_probs`; answers every prompt with COMPLETION."""

    def __init__(self) -> None:
        self.tokenizer = fake_tokenizer()
        self.passing_errors: list[Exception] = []
        self.error: Exception | None = None
        self.silent_seconds = 0.0
        self.drop_chunk: int | None = None
        self.cut_after: int | None = None
        self.deadlines: list[float | None] = []
        self.calls: list[str] = []
        self.cancelled = threading.Event()

    def _arrive(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.deadlines.append(context.time_remaining())
        silent_seconds, self.silent_seconds = self.silent_seconds, 0.0
        time.sleep(silent_seconds)
        if self.passing_errors:
            raise self.passing_errors.pop(0)
        if self.error is not None:
            raise self.error

    def GetModelInfo(self, request, context):
        self._arrive("GetModelInfo", context)
        return teacher_service_pb2.TeacherServiceGetModelInfoResponse(
            model=fake_model_info(self.tokenizer, include_tokenizer=request.include_tokenizer)
        )

    def StreamTopK(self, request, context):
        self._arrive("StreamTopK", context)
        context.add_callback(self.cancelled.set)
        for index, chunk in enumerate(score(request.scoring)):
            if index == self.cut_after:
                raise UnavailableError("the connection broke")
            if index != self.drop_chunk:
                yield teacher_service_pb2.TeacherServiceStreamTopKResponse(chunk=chunk)

    def Sample(self, request, context):
        self._arrive("Sample", context)
        for sequence in sample(self.tokenizer, request.sampling, COMPLETION):
            yield teacher_service_pb2.TeacherServiceSampleResponse(sequence=sequence)
