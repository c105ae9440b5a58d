"""Pulling from teachers: only from those named, of the same vocabulary, with their errors named."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from distill.errors import (
    CallEndedError,
    DeadlineError,
    InvalidFieldError,
    LimitExceededError,
    UnavailableError,
    WrongStateError,
)
from distill.v1 import scoring_pb2, teacher_service_pb2, teacher_service_pb2_grpc
from student_service.edge.teacher_pool import TeacherPool

FINGERPRINT = "same"


class FakeTeacher(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Streams chunks for rows 0, 1, 2, or ends with a status."""

    def __init__(self):
        self.fingerprint = FINGERPRINT
        self.status = None
        self.deadlines = []
        self.stalls = False
        self.started = threading.Event()
        self.ended = threading.Event()

    def GetModelInfo(self, request, context):  # noqa: ARG002
        model = scoring_pb2.ModelInfo(tokenizer_fingerprint=self.fingerprint)
        return teacher_service_pb2.TeacherServiceGetModelInfoResponse(model=model)

    def StreamTopK(self, request, context):
        self.deadlines.append(context.time_remaining())
        context.add_callback(self.ended.set)
        self.started.set()
        if self.stalls:
            self.ended.wait(20)
        for row, _ in enumerate(request.scoring.prompts):
            chunk = scoring_pb2.TopKChunk(prompt_index=row)
            yield teacher_service_pb2.TeacherServiceStreamTopKResponse(chunk=chunk)
        if self.status is not None:
            context.abort(self.status, "the reason")


class Call:
    """The context of the student's own call, as far as the pool needs it."""

    def __init__(self, seconds=20.0):
        self.seconds = seconds
        self.callbacks = []
        self.active = True

    def time_remaining(self):
        return self.seconds

    def add_callback(self, callback):
        self.callbacks.append(callback)
        return self.active

    def cancel(self):
        self.active = False
        for callback in self.callbacks:
            callback()


def pull(pool, name="main", call=None, max_bytes=1 << 20):
    return pool.pull(name, SCORING, call or Call(), max_bytes=max_bytes)


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
    chunks, byte_count = pull(pool)
    assert [chunk.prompt_index for chunk in chunks] == [0, 1, 2]
    assert byte_count == sum(chunk.ByteSize() for chunk in chunks)
    # gRPC rounds a deadline up on its way.
    assert 0 < teacher.deadlines[0] < 22.0


def test_teacher_with_another_vocabulary_is_refused_with_both_fingerprints(pool, teacher):
    teacher.fingerprint = "foreign"
    with pytest.raises(WrongStateError, match=r"'main'.*foreign.*same"):
        pull(pool)
    assert teacher.deadlines == []


def test_teacher_that_was_replaced_by_a_foreign_one_is_refused(pool, teacher):
    pull(pool)
    teacher.fingerprint = "foreign"
    with pytest.raises(WrongStateError, match="foreign"):
        pull(pool)
    assert len(teacher.deadlines) == 1


def test_call_that_ends_stops_the_teacher(pool, teacher):
    teacher.stalls = True
    call, errors = Call(), []

    def wait_for_chunks():
        with pytest.raises(CallEndedError) as caught:
            pull(pool, call=call)
        errors.append(caught.value)

    thread = threading.Thread(target=wait_for_chunks)
    thread.start()
    assert teacher.started.wait(5)
    call.cancel()
    assert teacher.ended.wait(5)
    thread.join(5)
    assert len(errors) == 1


def test_call_that_has_ended_pulls_nothing(pool):
    call = Call()
    call.cancel()
    with pytest.raises(CallEndedError):
        pull(pool, call=call)


def test_chunks_beyond_the_limit_are_refused_and_the_teacher_stops(pool, teacher):
    total = pull(pool)[1]
    assert pull(pool, max_bytes=total)[1] == total
    teacher.ended.clear()
    with pytest.raises(LimitExceededError, match=rf"at most {total - 1} bytes, got {total}"):
        pull(pool, max_bytes=total - 1)
    assert teacher.ended.wait(5)


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
        pull(pool)


@pytest.mark.usefixtures("proxy_for_the_web")
def test_proxy_for_the_web_is_not_asked_for_a_teacher(pool):
    assert len(pull(pool)[0]) == 3


def test_unreachable_teacher_is_unavailable():
    pool = TeacherPool({"gone": "127.0.0.1:1"}, tokenizer_fingerprint=FINGERPRINT)
    with pytest.raises(UnavailableError, match="'gone' is not reachable"):
        pull(pool, "gone")
    pool.close()


def test_unknown_name_is_refused_with_the_known_ones(pool):
    with pytest.raises(InvalidFieldError, match="must be one of: main; got 'other'"):
        pool.check_name("other", "batch.pull.teacher")
