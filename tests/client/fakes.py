"""Small services in this process that follow the contract, and misbehave where a test asks."""

# ruff: noqa: ARG002 - gRPC calls a servicer with both arguments

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from distill.errors import SequenceConflictError, UnavailableError, WrongStateError
from distill.rpc.status import ErrorInterceptor
from distill.tensors import decode_int32, encode_floats, encode_int32
from distill.tokenizer import TextTokenizer
from distill.v1 import (
    scoring_pb2,
    student_service_pb2,
    student_service_pb2_grpc,
    teacher_service_pb2,
    teacher_service_pb2_grpc,
    training_pb2,
)
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

VOCAB_SIZE = 400
END_TOKEN = 2
COMPLETION = "Answer: Paris."
ROWS_PER_CHUNK = 3


def fake_tokenizer() -> TextTokenizer:
    """The tokenizer of both fakes."""
    return TextTokenizer.from_parts(
        tokenizer_json=tiny_tokenizer(VOCAB_SIZE).to_str(),
        chat_template=CHAT_TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        end_token_ids=[END_TOKEN],
    )


def fake_model_info(tokenizer: TextTokenizer, *, include_tokenizer: bool) -> scoring_pb2.ModelInfo:
    message = scoring_pb2.ModelInfo(
        name="fake",
        family="llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=8,
        layer_count=2,
        parameter_count=1234,
        compute_dtype="float32",
        weights_version="w0",
        tokenizer_fingerprint=tokenizer.fingerprint,
        limits=scoring_pb2.Limits(
            max_sequence_tokens=512,
            max_top_k=VOCAB_SIZE,
            max_sequences=64,
            max_request_tokens=8192,
            max_request_bytes=1 << 20,
        ),
    )
    if include_tokenizer:
        message.tokenizer.CopyFrom(
            scoring_pb2.Tokenizer(
                tokenizer_json=tokenizer.tokenizer_json,
                chat_template=tokenizer.chat_template,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                end_token_ids=tokenizer.end_token_ids,
            )
        )
    return message


def row_log_probs(prefix: np.ndarray) -> np.ndarray:
    """The fakes' distribution after a prefix: [V] log-probs that depend on all its tokens."""
    logits = np.random.default_rng([7, *prefix.tolist()]).normal(size=VOCAB_SIZE)
    return logits - np.log(np.exp(logits).sum())


def score_prompt(row: int, tokens: np.ndarray, first: int, top_k: int) -> scoring_pb2.TopKChunk:
    """One chunk: rows [first, first + P) of a prompt, P at most ROWS_PER_CHUNK."""
    last = min(first + ROWS_PER_CHUNK, len(tokens))
    dense = np.stack([row_log_probs(tokens[:position]) for position in range(first, last)])
    order = np.argsort(-dense, axis=-1)[:, :top_k]
    kept = np.take_along_axis(dense, order, -1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(1 - np.exp(kept).sum(-1), 0))
    return scoring_pb2.TopKChunk(
        row=row,
        position_offset=first,
        token_ids=encode_int32(order),
        log_probs=encode_floats(kept),
        prompt_log_probs=encode_floats(dense[np.arange(last - first), tokens[first:last]]),
        tail_log_probs=encode_floats(tail),
        entropies=encode_floats(-(np.exp(dense) * dense).sum(-1)),
    )


def score(scoring: scoring_pb2.Scoring) -> Iterator[scoring_pb2.TopKChunk]:
    """The chunks of a request; those of different prompts take turns."""
    prompts = [decode_int32(prompt.token_ids, "prompt", (1,)) for prompt in scoring.prompts]
    positions = [
        prompt.score_from if prompt.HasField("score_from") else 1 for prompt in scoring.prompts
    ]
    while any(position < len(prompts[row]) for row, position in enumerate(positions)):
        for row, tokens in enumerate(prompts):
            if positions[row] < len(tokens):
                yield score_prompt(row, tokens, positions[row], scoring.top_k)
                positions[row] += ROWS_PER_CHUNK


def sample(
    tokenizer: TextTokenizer, sampling: scoring_pb2.Sampling, text: str
) -> Iterator[scoring_pb2.SampledSequence]:
    """`text` as the completion of every prompt, the last prompt first."""
    token_ids = np.array([*tokenizer.encode(text), END_TOKEN])
    for index in reversed(range(len(sampling.prompts))):
        yield scoring_pb2.SampledSequence(
            prompt_index=index,
            sample_index=0,
            token_ids=encode_int32(token_ids),
            log_probs=encode_floats(np.zeros(len(token_ids))),
            stop_reason=scoring_pb2.STOP_REASON_STOP,
            text=text,
        )


class FakeTeacher(teacher_service_pb2_grpc.TeacherServiceServicer):
    """Scores with `row_log_probs`; answers every prompt with COMPLETION."""

    def __init__(self) -> None:
        self.tokenizer = fake_tokenizer()
        self.unavailable_count = 0
        self.error: Exception | None = None
        self.drop_chunk: int | None = None
        self.cut_after: int | None = None
        self.deadlines: list[float | None] = []
        self.calls: list[str] = []
        self.cancelled = threading.Event()

    def _arrive(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.deadlines.append(context.time_remaining())
        if self.unavailable_count:
            self.unavailable_count -= 1
            raise UnavailableError("the service is draining")
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


class FakeStudent(student_service_pb2_grpc.StudentServiceServicer):
    """Keeps one run's sequence as the contract says; "trains" by counting.

    `loss` falls with each step, so that recipes have something to report.
    """

    def __init__(self) -> None:
        self.tokenizer = fake_tokenizer()
        self.calls: list[str] = []
        self.batches: list[
            tuple[
                student_service_pb2.ForwardBackwardHeader | student_service_pb2.ForwardHeader,
                list,
                list,
            ]
        ] = []
        self.run_id = "run"
        self.last = 0
        self.epoch = 1
        self.step = 0
        self.learning_rates: list[float] = []
        self.answers: dict[int, tuple[bytes, object]] = {}
        self.lose_answers = 0
        self.lose_take_overs = False
        self.refuse_next = False
        self.error: Exception | None = None
        self.completion_texts = ["Paris is the capital", COMPLETION]
        self.export_pieces: list[student_service_pb2.ExportWeightsResponse] = []
        self.config = None
        self.deleted = False

    def _apply(self, mutation, content: bytes, operation):
        if mutation.writer_epoch != self.epoch:
            raise SequenceConflictError("mutation.writer_epoch: another writer took over")
        if mutation.sequence_number in self.answers:
            digest, answer = self.answers[mutation.sequence_number]
            if digest != content:
                raise SequenceConflictError("mutation.sequence_number: other content")
            repeated = type(answer)()
            repeated.CopyFrom(answer)
            repeated.replayed = True
            return repeated
        if mutation.sequence_number != self.last + 1:
            raise WrongStateError(f"mutation.sequence_number: the next one is {self.last + 1}")
        if self.refuse_next:
            self.refuse_next = False
            raise WrongStateError("refused by the test")
        answer = operation()
        self.last += 1
        self.answers[self.last] = (content, answer)
        if self.lose_answers:
            self.lose_answers -= 1
            raise UnavailableError("the answer was lost")
        return answer

    def _run(self):
        return training_pb2.Run(
            run_id=self.run_id,
            config=self.config,
            writer_epoch=self.epoch,
            last_sequence_number=self.last,
            step=self.step,
            trainable_parameter_count=99,
            weights_version=f"w{self.step}",
        )

    def GetModelInfo(self, request, context):
        return student_service_pb2.StudentServiceGetModelInfoResponse(
            model=fake_model_info(self.tokenizer, include_tokenizer=request.include_tokenizer),
            teachers=["main"],
        )

    def CreateRun(self, request, context):
        self.config = request.config
        if request.take_over:
            self.epoch += 1
            if self.lose_take_overs:
                raise UnavailableError("the answer was lost")
        return student_service_pb2.CreateRunResponse(run=self._run())

    def GetRun(self, request, context):
        if self.error is not None:
            raise self.error
        return student_service_pb2.GetRunResponse(run=self._run())

    def ListRuns(self, request, context):
        return student_service_pb2.ListRunsResponse(runs=[self._run()])

    def DeleteRun(self, request, context):
        self.deleted = True
        return student_service_pb2.DeleteRunResponse()

    def _receive(self, requests):
        parts = list(requests)
        assert parts[0].WhichOneof("part") == "header"
        header = parts[0].header
        examples = [part.example for part in parts if part.WhichOneof("part") == "example"]
        chunks = [part.chunk for part in parts if part.WhichOneof("part") == "chunk"]
        assert len(examples) == header.batch.example_count
        self.batches.append((header, examples, chunks))
        content = b"".join(part.SerializeToString(deterministic=True) for part in parts)
        row_count = sum(example.distribution_targets.row_count for example in examples)
        result = training_pb2.BatchResult()
        result.loss = row_count / (1 + self.step)
        result.row_count = row_count
        result.token_count = sum(len(example.input_tokens.values) for example in examples)
        result.pulled_bytes = 1000 if header.batch.HasField("pull") else 0
        result.seconds.targets = 0.25
        result.seconds.compute = 0.5
        result.metrics.tail_bucket_kl = 3.0 / (1 + self.step)
        result.metrics.teacher_entropy = 1.0
        for _ in examples:
            result.examples.add().loss = 1.0
        return header, content, result

    def ForwardBackward(self, requests, context):
        self.calls.append("ForwardBackward")
        header, content, result = self._receive(requests)
        return self._apply(
            header.mutation,
            content,
            lambda: student_service_pb2.ForwardBackwardResponse(result=result),
        )

    def Forward(self, requests, context):
        self.calls.append("Forward")
        return student_service_pb2.ForwardResponse(result=self._receive(requests)[2])

    def OptimStep(self, request, context):
        self.calls.append("OptimStep")

        def step():
            self.step += 1
            self.learning_rates.append(request.adamw.learning_rate)
            return student_service_pb2.OptimStepResponse(
                step=self.step, gradient_norm=2.0, update_norm=0.1, normalizer=5.0
            )

        return self._apply(request.mutation, request.SerializeToString(deterministic=True), step)

    def Sample(self, request, context):
        self.calls.append("Sample")
        text = self.completion_texts[min(self.step, len(self.completion_texts) - 1)]
        for sequence in sample(self.tokenizer, request.sampling, text):
            yield student_service_pb2.StudentServiceSampleResponse(sequence=sequence)

    def StreamTopK(self, request, context):
        for chunk in score(request.scoring):
            yield student_service_pb2.StudentServiceStreamTopKResponse(chunk=chunk)

    def SaveCheckpoint(self, request, context):
        def save():
            return student_service_pb2.SaveCheckpointResponse(
                checkpoint={"name": request.name, "step": self.step, "size_bytes": 10}
            )

        return self._apply(request.mutation, request.SerializeToString(deterministic=True), save)

    def LoadCheckpoint(self, request, context):
        return self._apply(
            request.mutation,
            request.SerializeToString(deterministic=True),
            lambda: student_service_pb2.LoadCheckpointResponse(run=self._run()),
        )

    def ListCheckpoints(self, request, context):
        return student_service_pb2.ListCheckpointsResponse(
            checkpoints=[{"name": "first", "step": 3, "size_bytes": 1 << 20}]
        )

    def ExportWeights(self, request, context):
        yield from self.export_pieces


@contextmanager
def serving(servicer: FakeTeacher | FakeStudent) -> Iterator[str]:
    """Serve it on a free loopback port; yields the address."""
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[ErrorInterceptor(8)])
    port = server.add_insecure_port("127.0.0.1:0")
    if isinstance(servicer, FakeTeacher):
        teacher_service_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
    else:
        student_service_pb2_grpc.add_StudentServiceServicer_to_server(servicer, server)
    checks = health.HealthServicer()
    kind = "Teacher" if isinstance(servicer, FakeTeacher) else "Student"
    checks.set(f"distill.v1.{kind}Service", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def export_piece(name: str, offset: int, data: bytes, size: int) -> object:
    """A piece of an exported file."""
    return student_service_pb2.ExportWeightsResponse(
        file_name=name, byte_offset=offset, data=data, file_bytes=size
    )
