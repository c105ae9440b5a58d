import time

import numpy as np
import pytest

from client.errors import BrokenStreamError, ServiceError
from client.settings import SamplingParams, scored_prompt
from client.teacher import TeacherClient
from distill.errors import BusyError, InvalidFieldError, LimitExceededError, UnavailableError
from tests.client.fake_model import COMPLETION, END_TOKEN, VOCAB_SIZE, row_log_probs
from tests.client.fake_teacher import FakeTeacher

PROMPTS = [[5, 9, 1, 7, 4, 4, 2, 30], [3, 8], [11, 12, 13, 14, 15]]


def test_scores_hold_every_requested_row_of_every_prompt(teacher: TeacherClient) -> None:
    scores = teacher.score(PROMPTS, 6, score_from=[3, 1, 2])
    assert [one.first_row for one in scores] == [3, 1, 2]
    for prompt, one in zip(PROMPTS, scores, strict=True):
        positions = range(one.first_row, len(prompt))
        dense = np.stack([row_log_probs(np.array(prompt[:position])) for position in positions])
        np.testing.assert_array_equal(one.token_ids, np.argsort(-dense, -1)[:, :6])
        np.testing.assert_allclose(one.log_probs, -np.sort(-dense, -1)[:, :6], rtol=1e-6)
        own = dense[np.arange(len(dense)), prompt[one.first_row :]]
        np.testing.assert_allclose(one.prompt_log_probs, own, rtol=1e-6)
        assert one.log_probs.dtype == np.float32
        assert one.token_ids.dtype == np.int32


def test_whole_vocabulary_has_no_tail(teacher: TeacherClient) -> None:
    (scores,) = teacher.score([PROMPTS[1]], VOCAB_SIZE)
    np.testing.assert_allclose(np.exp(scores.log_probs).sum(-1), 1, rtol=1e-5)


def test_a_missing_chunk_is_an_error(teacher: TeacherClient, fake_teacher: FakeTeacher) -> None:
    for dropped in (0, 3):  # a gap before later rows, and a missing end
        fake_teacher.drop_chunk = dropped
        with pytest.raises(BrokenStreamError, match="prompt 0"):
            teacher.score(PROMPTS, 4)


def test_scored_prompt_and_score_from_together_are_refused(teacher: TeacherClient) -> None:
    with pytest.raises(ValueError, match="score_from"):
        teacher.score([scored_prompt([1, 2], score_from=1)], 2, score_from=1)
    with pytest.raises(ValueError, match="one row per prompt"):
        teacher.score(PROMPTS, 2, score_from=[1])


def test_tokens_that_cannot_be_sent_are_refused(teacher: TeacherClient) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\].*integers"):
        teacher.score([[1, 2], [0.5, 1.0]], 2)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"prompts\[0\].*int32"):
        teacher.score([[1, 2**32 + 5]], 2)
    with pytest.raises(ValueError, match=r"prompts\[0\].*dimensions"):
        teacher.score([np.zeros((2, 2), np.int32)], 2)


def test_samples_come_in_the_order_of_the_prompts(teacher: TeacherClient) -> None:
    samples = teacher.sample(PROMPTS, SamplingParams(max_tokens=20, temperature=0))
    assert [one.prompt_index for one in samples] == [0, 1, 2]
    assert {one.text for one in samples} == {COMPLETION}
    assert {one.token_ids[-1] for one in samples} == {END_TOKEN}


def test_tokenizer_comes_over_the_wire_once(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    tokenizer = teacher.tokenizer()
    assert teacher.tokenizer() is tokenizer
    assert fake_teacher.calls == ["GetModelInfo"]
    assert tokenizer.decode(tokenizer.encode("What is it?")) == "What is it?"
    assert tokenizer.fingerprint == teacher.model_info().tokenizer_fingerprint


def test_every_call_has_a_deadline(teacher: TeacherClient, fake_teacher: FakeTeacher) -> None:
    teacher.model_info()
    teacher.score([[1, 2]], 2)
    teacher.sample([[1]], SamplingParams(max_tokens=1))
    teacher.model_info(timeout_seconds=5)
    # gRPC rounds a timeout up on the wire.
    assert all(seconds is not None and 0 < seconds <= 21 for seconds in fake_teacher.deadlines)
    assert fake_teacher.deadlines[-1] is not None
    assert fake_teacher.deadlines[-1] <= 6


DRAINING = UnavailableError("the service is draining")
BUSY = BusyError("the service handles 8 requests at a time")


def test_unavailable_is_retried(teacher: TeacherClient, fake_teacher: FakeTeacher) -> None:
    fake_teacher.passing_errors = [DRAINING] * 2
    assert teacher.model_info().name == "fake"
    fake_teacher.passing_errors = [DRAINING] * 2
    assert len(teacher.score([[1, 2]], 2)) == 1
    assert fake_teacher.calls == ["GetModelInfo"] * 3 + ["StreamTopK"] * 3


def test_a_busy_service_is_asked_again_after_the_delay_that_it_names(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    fake_teacher.passing_errors = [BUSY]
    started = time.monotonic()
    assert teacher.model_info().name == "fake"
    assert time.monotonic() - started >= 0.5  # of BusyError; the client's own delay is 0.01 s
    assert fake_teacher.calls == ["GetModelInfo"] * 2


def test_attempts_that_run_out_are_counted_and_the_last_error_is_raised(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    fake_teacher.passing_errors = [DRAINING] * 3
    with pytest.raises(ServiceError, match="draining; tried 3 times in") as caught:
        teacher.model_info()
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "UNAVAILABLE")
    assert caught.value.attempts == 3


def test_the_error_of_a_later_attempt_knows_of_the_earlier_ones(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    fake_teacher.passing_errors = [DRAINING, InvalidFieldError("scoring", "is wrong")]
    with pytest.raises(ServiceError) as caught:
        teacher.model_info()
    assert (caught.value.code, caught.value.attempts) == ("INVALID_ARGUMENT", 2)
    assert str(caught.value) == "INVALID_ARGUMENT: scoring: is wrong"


def test_other_errors_are_not_retried_and_name_the_field(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    fake_teacher.error = InvalidFieldError("scoring.top_k", "must be in [1, 9], got 0")
    with pytest.raises(ServiceError) as caught:
        teacher.score([[1, 2]], 0)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.field == "scoring.top_k"
    assert caught.value.violations[0].problem == "must be in [1, 9], got 0"
    assert str(caught.value) == "INVALID_ARGUMENT: scoring.top_k: must be in [1, 9], got 0"
    assert fake_teacher.calls == ["StreamTopK"]

    fake_teacher.error = LimitExceededError("scoring.prompts", 64, 65)
    with pytest.raises(ServiceError) as caught:
        teacher.score([[1, 2]], 1)
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert caught.value.field == "scoring.prompts"
    assert caught.value.metadata["limit"] == "64"
    assert caught.value.attempts == 1
    assert fake_teacher.calls == ["StreamTopK"] * 2


def test_an_error_amid_a_stream_is_not_retried(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    fake_teacher.cut_after = 1
    chunks = teacher.stream_top_k(PROMPTS, 2)
    next(chunks)
    with pytest.raises(ServiceError, match="UNAVAILABLE"):
        next(chunks)
    assert fake_teacher.calls == ["StreamTopK"]


def test_leaving_a_stream_cancels_it_on_the_service(
    teacher: TeacherClient, fake_teacher: FakeTeacher
) -> None:
    chunks = teacher.stream_top_k([list(range(300))] * 8, VOCAB_SIZE)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert fake_teacher.cancelled.wait(10)


def test_a_deadline_that_passes_is_a_service_error(teacher: TeacherClient) -> None:
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        teacher.score([list(range(400))] * 20, VOCAB_SIZE, timeout_seconds=0.3)
    with pytest.raises(ValueError, match="timeout_seconds"):
        teacher.model_info(timeout_seconds=0)


def test_nobody_at_the_address_is_unavailable() -> None:
    with (
        TeacherClient("127.0.0.1:1", timeout_seconds=1) as client,
        pytest.raises(ServiceError, match="UNAVAILABLE"),
    ):
        client.model_info()


@pytest.mark.usefixtures("proxy_for_the_web")
def test_proxy_for_the_web_is_not_asked(teacher: TeacherClient) -> None:
    assert teacher.model_info().name == "fake"
