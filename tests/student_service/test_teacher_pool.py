"""Pulling from teachers: only from those named, of the same vocabulary, with their errors named."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from distill.errors import (
    DeadlineError,
    InvalidFieldError,
    UnavailableError,
    WrongStateError,
)
from distill.v1 import scoring_pb2, teacher_service_pb2, teacher_service_pb2_grpc
from student_service.teacher_pool import TeacherPool

FINGERPRINT = "same"


class FakeTeacher(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Streams chunks for rows 0, 1, 2, or ends with a status."""

    def __init__(self):
        self.fingerprint = FINGERPRINT
        self.status = None
        self.deadlines = []

    def GetModelInfo(self, request, context):  # noqa: ARG002
        model = scoring_pb2.ModelInfo(tokenizer_fingerprint=self.fingerprint)
        return teacher_service_pb2.TeacherServiceGetModelInfoResponse(model=model)

    def StreamTopK(self, request, context):
        self.deadlines.append(context.time_remaining())
        for row, _ in enumerate(request.scoring.prompts):
            chunk = scoring_pb2.TopKChunk(row=row)
            yield teacher_service_pb2.TeacherServiceStreamTopKResponse(chunk=chunk)
        if self.status is not None:
            context.abort(self.status, "the reason")


@pytest.fixture
def teacher():
    return FakeTeacher()


@pytest.fixture
def address(teacher):
    server = grpc.server(ThreadPoolExecutor(2))
    teacher_service_pb2_grpc.add_TeacherServiceServicer_to_server(teacher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def pool(address):
    pool = TeacherPool({"main": address}, tokenizer_fingerprint=FINGERPRINT)
    yield pool
    pool.close()


SCORING = scoring_pb2.Scoring(prompts=[scoring_pb2.ScoredPrompt()] * 3, top_k=4)


def test_pull_returns_every_chunk_under_the_remaining_deadline(pool, teacher):
    assert [chunk.row for chunk in pool.pull("main", SCORING, 20.0)] == [0, 1, 2]
    # gRPC rounds a deadline up on its way.
    assert 0 < teacher.deadlines[0] < 22.0


def test_teacher_with_another_vocabulary_is_refused_with_both_fingerprints(pool, teacher):
    teacher.fingerprint = "foreign"
    with pytest.raises(WrongStateError, match=r"'main'.*foreign.*same"):
        pool.pull("main", SCORING, 20.0)
    assert teacher.deadlines == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidFieldError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.INTERNAL, WrongStateError),
    ],
)
def test_errors_of_the_teacher_name_it(pool, teacher, status, error):
    teacher.status = status
    with pytest.raises(error, match="'main'"):
        pool.pull("main", SCORING, 20.0)


@pytest.mark.usefixtures("proxy_for_the_web")
def test_proxy_for_the_web_is_not_asked_for_a_teacher(pool):
    assert len(pool.pull("main", SCORING, 20.0)) == 3


def test_unreachable_teacher_is_unavailable():
    pool = TeacherPool({"gone": "127.0.0.1:1"}, tokenizer_fingerprint=FINGERPRINT)
    with pytest.raises(UnavailableError, match="'gone' is not reachable"):
        pool.pull("gone", SCORING, 20.0)
    pool.close()


def test_unknown_name_is_refused_with_the_known_ones(pool):
    with pytest.raises(InvalidFieldError, match="must be one of: main; got 'other'"):
        pool.check_name("other", "batch.pull.teacher")
