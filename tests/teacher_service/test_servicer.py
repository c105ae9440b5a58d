"""The teacher over a real connection: description, streams, concurrency, cancellation, errors."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from distill.engine.device_queue import DeviceQueue
from distill.engine.scorer import Scorer
from distill.models.loading import LoadedModel
from distill.tensors import decode_floats, decode_int32, encode_int32
from distill.tokenizer import TextTokenizer
from distill.v1 import scoring_pb2
from distill.v1 import teacher_service_pb2 as pb
from distill.v1.teacher_service_pb2_grpc import TeacherServiceStub
from tests.support.waiting import wait_until

WAIT_SECONDS = 60.0


def tokens(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((length, seed)).integers(3, 512, length).tolist()


def scoring(*prompts: list[int], top_k: int = 4, score_from: int = 1) -> scoring_pb2.Scoring:
    return scoring_pb2.Scoring(
        prompts=[
            scoring_pb2.ScoredPrompt(
                token_ids=encode_int32(np.array(prompt, np.int32)), score_from=score_from
            )
            for prompt in prompts
        ],
        top_k=top_k,
    )


def stream_top_k(stub: TeacherServiceStub, request: scoring_pb2.Scoring) -> grpc.Call:
    return stub.StreamTopK(
        pb.TeacherServiceStreamTopKRequest(scoring=request), timeout=WAIT_SECONDS
    )


def own_log_probs(stub: TeacherServiceStub, prompt: list[int]) -> np.ndarray:
    chunks = [answer.chunk for answer in stream_top_k(stub, scoring(prompt))]
    return np.concatenate([decode_floats(chunk.prompt_log_probs, "", (1,)) for chunk in chunks])


def test_the_description_fits_the_model(stub: TeacherServiceStub, model: LoadedModel) -> None:
    info = stub.GetModelInfo(pb.TeacherServiceGetModelInfoRequest()).model
    assert (info.name, info.family, info.compute_dtype) == (model.name, "llama", "float32")
    assert (info.vocab_size, info.hidden_size, info.layer_count) == (512, 48, 2)
    assert info.parameter_count == model.parameter_count
    assert info.weights_version == model.weights_version
    assert info.tokenizer_fingerprint == model.tokenizer.fingerprint
    assert info.limits == scoring_pb2.Limits(
        max_sequence_tokens=600,
        max_top_k=512,
        max_sequences=16,
        max_request_tokens=1 << 20,
        max_request_bytes=1 << 30,
        max_message_bytes=64 << 20,
        max_in_flight_mutations=0,
        max_held_bytes=2 << 30,
    )
    assert not info.HasField("tokenizer")


def test_the_tokenizer_travels_whole(stub: TeacherServiceStub, model: LoadedModel) -> None:
    request = pb.TeacherServiceGetModelInfoRequest(include_tokenizer=True)
    sent = stub.GetModelInfo(request).model.tokenizer
    rebuilt = TextTokenizer(
        tokenizer_json=sent.tokenizer_json,
        chat_template=sent.chat_template,
        bos_token=sent.bos_token,
        eos_token=sent.eos_token,
        end_token_ids=sent.end_token_ids,
    )
    assert rebuilt.fingerprint == model.tokenizer.fingerprint
    assert rebuilt.end_token_ids == model.tokenizer.end_token_ids
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert rebuilt.encode_chat(messages) == model.tokenizer.encode_chat(messages)


def test_chunks_tile_the_requested_rows_exactly_once(stub: TeacherServiceStub) -> None:
    prompts = [tokens(length) for length in (20, 300, 300, 5)]
    next_row = [3] * len(prompts)
    for answer in stream_top_k(stub, scoring(*prompts, top_k=512, score_from=3)):
        chunk = answer.chunk
        shape = decode_int32(chunk.token_ids, "", (2,)).shape
        assert chunk.first_row == next_row[chunk.prompt_index]
        assert shape[1] == 512
        next_row[chunk.prompt_index] += shape[0]
        # "Aim for 32-256 KiB a chunk": the bound, with what the encoding adds.
        assert answer.ByteSize() <= (256 << 10) + 512
    assert next_row == [len(prompt) for prompt in prompts]


def test_concurrent_streams_get_the_answers_they_would_get_alone(
    stub: TeacherServiceStub,
) -> None:
    prompts = [tokens(20 + 37 * index, index) for index in range(10)]
    alone = [own_log_probs(stub, prompt) for prompt in prompts]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda prompt: own_log_probs(stub, prompt), prompts))
    for first, second in zip(alone, together, strict=True):
        # Up to the rounding of sums whose shapes are those of the pack.
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_cancelled_stream_stops_costing_compute(
    stub: TeacherServiceStub, queue: DeviceQueue, scorer: Scorer
) -> None:
    prompts = [tokens(600, seed) for seed in range(16)]
    rows_before = scorer.head_rows_computed
    call = stream_top_k(stub, scoring(*prompts, top_k=512))
    next(call)
    call.cancel()
    wait_until(lambda: not queue._unfinished, WAIT_SECONDS)
    computed = scorer.head_rows_computed - rows_before
    assert 0 < computed < 16 * 599 / 2
    # The queue is free for others.
    assert len(own_log_probs(stub, tokens(10))) == 9


def test_a_client_that_does_not_read_is_not_computed_for(
    stub: TeacherServiceStub, queue: DeviceQueue, scorer: Scorer
) -> None:
    prompts = [tokens(600, seed) for seed in range(16)]
    rows_before = scorer.head_rows_computed
    call = stream_top_k(stub, scoring(*prompts, top_k=512))
    next(call)
    # Nothing is read: the stream stands once the transport holds all it may, and the stream has as
    # many chunks in flight as its limit.
    seen = -1
    while seen != scorer.head_rows_computed:
        seen = scorer.head_rows_computed
        time.sleep(1.0)
    # 8 MB of rows of 8 bytes a token.
    assert seen - rows_before < 8 * 2**20 / (512 * 8)
    # Others get their turn meanwhile.
    assert len(own_log_probs(stub, tokens(10))) == 9
    call.cancel()
    wait_until(lambda: not queue._unfinished, WAIT_SECONDS)


def test_a_passed_deadline_ends_the_compute(stub: TeacherServiceStub, queue: DeviceQueue) -> None:
    request = pb.TeacherServiceSampleRequest(
        sampling=scoring_pb2.Sampling(
            prompts=[encode_int32(np.array(tokens(5), np.int32))],
            params=scoring_pb2.SamplingParams(max_tokens=2000, ignore_end_tokens=True),
        )
    )
    pieces_before = queue.pieces_run
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Sample(request, timeout=0.05))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: not queue._unfinished, WAIT_SECONDS)
    assert queue.pieces_run - pieces_before < 2000 / 8


def test_samples_arrive_once_each_and_agree_with_scoring(stub: TeacherServiceStub) -> None:
    prompts = [tokens(7), tokens(30)]
    request = pb.TeacherServiceSampleRequest(
        sampling=scoring_pb2.Sampling(
            prompts=[encode_int32(np.array(prompt, np.int32)) for prompt in prompts],
            params=scoring_pb2.SamplingParams(max_tokens=12, samples_per_prompt=3, seed=5),
        )
    )
    seen = set()
    for answer in stub.Sample(request, timeout=WAIT_SECONDS):
        sample = answer.sequence
        seen.add((sample.prompt_index, sample.sample_index))
        generated = decode_int32(sample.token_ids, "", (1,)).tolist()
        prompt = prompts[sample.prompt_index]
        scored = own_log_probs(stub, prompt + generated)[len(prompt) - 1 :]
        np.testing.assert_allclose(decode_floats(sample.log_probs, "", (1,)), scored, atol=1e-4)
    assert seen == {(prompt, sample) for prompt in range(2) for sample in range(3)}


@pytest.mark.parametrize(
    ("request_scoring", "field"),
    [
        (scoring([1, 2, 3], top_k=0), "scoring.top_k"),
        (scoring([1, 2, 3], top_k=513), "scoring.top_k"),
        (scoring([1, 512]), "scoring.prompts[0].token_ids.values[1]"),
        (scoring([1, 2], score_from=2), "scoring.prompts[0].score_from"),
        (scoring(), "scoring.prompts"),
    ],
)
def test_a_bad_request_is_refused_before_any_compute(
    stub: TeacherServiceStub, queue: DeviceQueue, request_scoring: scoring_pb2.Scoring, field: str
) -> None:
    wait_until(lambda: not queue._unfinished, WAIT_SECONDS)
    pieces_before = queue.pieces_run
    with pytest.raises(grpc.RpcError) as caught:
        list(stream_top_k(stub, request_scoring))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = error_details_pb2.BadRequest()
    assert rpc_status.from_call(caught.value).details[1].Unpack(bad_request)
    assert [violation.field for violation in bad_request.field_violations] == [field]
    assert queue.pieces_run == pieces_before


def test_an_oversized_request_is_refused_before_any_compute(
    stub: TeacherServiceStub, queue: DeviceQueue
) -> None:
    wait_until(lambda: not queue._unfinished, WAIT_SECONDS)
    pieces_before = queue.pieces_run
    with pytest.raises(grpc.RpcError) as caught:
        list(stream_top_k(stub, scoring(tokens(601))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "scoring.prompts[0].token_ids: must be at most 600, got 601"
    assert queue.pieces_run == pieces_before
