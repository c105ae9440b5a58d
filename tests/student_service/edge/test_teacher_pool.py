"""Pulling from teachers: only from those named, of the same vocabulary, with their errors named."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from distill.errors import (
    AlreadyAppliedError,
    BusyError,
    CallEndedError,
    CorruptDataError,
    DeadlineError,
    DistillError,
    HeldBytesError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    SequenceReusedError,
    TokenizerMismatchError,
    UnavailableError,
    WrongStateError,
)
from distill.limits import MESSAGE_OVERHEAD_BYTES
from distill.rpc.status import to_status
from distill.v1 import scoring_pb2, teacher_service_pb2, teacher_service_pb2_grpc
from student_service.edge import teacher_pool
from student_service.edge.teacher_errors import teacher_error
from student_service.edge.teacher_pool import TeacherPool

FINGERPRINT = "same"


class FakeTeacher(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Streams chunks for rows 0, 1, 2, or ends with a status."""

    def __init__(self):
        self.fingerprint = FINGERPRINT
        self.error = None
        self.status = None
        self.is_frozen = False
        self.deadlines = []
        self.stalls = False
        self.started = threading.Event()
        self.ended = threading.Event()

    def GetModelInfo(self, request, context):  # noqa: ARG002
        if self.is_frozen:
            left = threading.Event()
            context.add_callback(left.set)
            left.wait(20)
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
        if self.error is not None:
            context.abort_with_status(rpc_status.to_status(to_status(self.error)))
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

    def is_active(self):
        return self.active

    def cancel(self):
        self.active = False
        for callback in self.callbacks:
            callback()


def pull(pool, name="main", call=None, max_bytes=1 << 20):
    chunks = []
    byte_count = pool.pull(
        name,
        SCORING,
        call or Call(),
        max_bytes=max_bytes,
        receive=lambda chunk, _: chunks.append(chunk),
    )
    return chunks, byte_count


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
    with pytest.raises(TokenizerMismatchError, match=r"'main'.*foreign.*same"):
        pull(pool)
    assert teacher.deadlines == []


def test_teacher_that_was_replaced_by_a_foreign_one_is_refused(pool, teacher):
    pull(pool)
    teacher.fingerprint = "foreign"
    with pytest.raises(TokenizerMismatchError, match="foreign"):
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
    chunks, byte_count = pull(pool)
    total = byte_count + len(chunks) * MESSAGE_OVERHEAD_BYTES
    assert pull(pool, max_bytes=total)[1] == byte_count
    teacher.ended.clear()
    with pytest.raises(LimitExceededError, match=rf"at most {total - 1} bytes, got {total}"):
        pull(pool, max_bytes=total - 1)
    assert teacher.ended.wait(5)


def test_chunks_are_handed_on_as_they_arrive_and_a_refusal_stops_the_teacher(pool, teacher):
    taken = []

    def receive(chunk, _byte_count):
        taken.append(chunk)
        raise InvalidFieldError("chunks[0]", "no use")

    with pytest.raises(InvalidFieldError, match="no use"):
        pool.pull("main", SCORING, Call(), max_bytes=1 << 20, receive=receive)
    assert len(taken) == 1
    assert teacher.ended.wait(5)


RELAYED = [
    InvalidFieldError("scoring.top_k", "must be in [1, 256], got 999"),
    LimitExceededError("scoring.prompts", 4096, 5000),
    BusyError("the service handles 64 requests at a time"),
    HeldBytesError(100, 200),
    WrongStateError("not now"),
    UnavailableError("the service drains"),
]


@pytest.mark.parametrize("error", RELAYED, ids=lambda error: error.reason)
def test_what_a_teacher_says_of_the_request_or_its_load_comes_back_as_it_is(pool, teacher, error):
    teacher.error = error
    with pytest.raises(DistillError) as caught:
        pull(pool)
    relayed = caught.value
    assert (relayed.code, relayed.reason) == (error.code, error.reason)
    assert relayed.retry_seconds == error.retry_seconds
    assert relayed.message == f"teacher 'main': {error.message}"
    assert relayed.violations == [
        (f"header.batch.pull.{field}", problem) for field, problem in error.violations
    ]
    field = {
        key: f"header.batch.pull.{error.metadata[key]}" for key in {"field"} & {*error.metadata}
    }
    assert relayed.metadata == {**error.metadata, **field}
    # All of it reaches the caller of the student.
    sent, original = to_status(relayed), to_status(error)
    assert [each.TypeName() for each in sent.details] == [
        each.TypeName() for each in original.details
    ]


OWN = [
    NotFoundError("no such run"),
    AlreadyAppliedError("applied"),
    SequenceReusedError("used"),
    CorruptDataError("damaged"),
    DistillError("internal error"),
]


@pytest.mark.parametrize("error", OWN, ids=lambda error: error.reason)
def test_what_would_be_taken_for_a_mutations_own_fate_is_a_wrong_state(pool, teacher, error):
    teacher.error = error
    with pytest.raises(
        WrongStateError, match=f"teacher 'main' failed with {error.code}: "
    ) as caught:
        pull(pool)
    assert (caught.value.code, caught.value.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        ("INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        ("UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"),
        ("CANCELLED", "UNAVAILABLE", "UNAVAILABLE"),
        ("UNIMPLEMENTED", "FAILED_PRECONDITION", "WRONG_STATE"),
        ("UNAUTHENTICATED", "FAILED_PRECONDITION", "WRONG_STATE"),
        ("PERMISSION_DENIED", "FAILED_PRECONDITION", "WRONG_STATE"),
        ("INTERNAL", "FAILED_PRECONDITION", "WRONG_STATE"),
    ],
)
def test_bare_status_of_a_teacher_names_it_and_is_not_the_students_own(
    pool, teacher, status, code, reason
):
    teacher.status = grpc.StatusCode[status]
    with pytest.raises(DistillError, match="teacher 'main'") as caught:
        pull(pool)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.retry_seconds is None


def test_details_of_another_domain_are_not_taken_for_this_contracts():
    info = error_details_pb2.ErrorInfo(reason="QUOTA", domain="proxy.example")
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="later")
    status.details.add().Pack(info)
    error = teacher_error("main", FailedCall(status), is_active=True)
    assert (error.code, error.reason) == ("UNAVAILABLE", "UNAVAILABLE")


def test_details_that_do_not_parse_leave_code_and_message():
    status = to_status(BusyError("busy"))
    status.details[0].value = b"\xff"
    error = teacher_error("main", FailedCall(status), is_active=True)
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")
    assert error.message == "teacher 'main': busy"


class FailedCall(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, status):
        self.status = status

    def code(self):
        return next(code for code in grpc.StatusCode if code.value[0] == self.status.code)

    def details(self):
        return self.status.message

    def trailing_metadata(self):
        return (("grpc-status-details-bin", self.status.SerializeToString()),)


def test_teacher_that_does_not_say_what_it_serves_is_unavailable_and_no_deadline_passed(
    pool, teacher, monkeypatch
):
    monkeypatch.setattr(teacher_pool, "INFO_TIMEOUT_SECONDS", 0.2)
    teacher.is_frozen = True
    with pytest.raises(UnavailableError, match=r"teacher 'main' did not answer within 0.2 s"):
        pull(pool)
    with pytest.raises(UnavailableError):
        pull(pool, call=Call(seconds=None))
    with pytest.raises(DeadlineError, match="'main' did not finish before the deadline"):
        pull(pool, call=Call(seconds=0.1))


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
        pool.check_name("other", "header.batch.pull.teacher")
