"""A student in this process that follows the contract, and misbehaves where a test asks."""

# ruff: noqa: ARG002 - gRPC calls a servicer with both arguments

import threading
import time
from collections.abc import Callable

from distill.errors import (
    CallEndedError,
    IncompleteStreamError,
    NotFoundError,
    SequenceReusedError,
    TooFarAheadError,
    UnavailableError,
    WriterFencedError,
    WrongStateError,
)
from distill.v1 import student_service_pb2, student_service_pb2_grpc, training_pb2
from tests.client.fake_model import COMPLETION, fake_model_info, fake_tokenizer, sample, score


class FakeStudent(student_service_pb2_grpc.StudentServiceServicer):
    """Keeps one run's sequence as the contract says; "trains" by counting.

    `loss` falls with each step, so that recipes have something to report.
    """

    def __init__(self) -> None:
        self.tokenizer = fake_tokenizer()
        self.calls: list[str] = []
        """Names of RPCs as they arrive."""
        self.done: list[str] = []
        """Names of mutations as they are applied, and of samplings."""
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
        self.normalizers: list[float] = []
        self.accumulated: list[training_pb2.BatchResult] = []
        self.answers: dict[int, tuple[bytes, object]] = {}
        self.changed = threading.Condition()
        self.on_arrival: Callable[[int], None] = lambda _: None
        """Called with the number of each mutation that arrives, before it is looked at."""
        self.arrived: list[int] = []
        self.dropped: list[int] = []
        self.max_in_flight_mutations = 64
        self.lose_answers = 0
        self.lose_take_overs = 0
        self.attached: dict[str, int] = {}
        self.attach_requests: list[student_service_pb2.CreateRunRequest] = []
        self.refuse_next = False
        self.error: Exception | None = None
        self.completion_texts = ["Paris is the capital", COMPLETION]
        self.export_pieces: list[student_service_pb2.ExportWeightsResponse] = []
        self.config = None
        self.deleted = False

    def wait_for_arrival(self, number: int) -> None:
        """Wait until a mutation with this number is here."""
        end = time.monotonic() + 10
        while number not in self.arrived:
            assert time.monotonic() < end
            time.sleep(0.005)

    def _apply(self, mutation, content, operation, context):
        number = mutation.sequence_number
        self.arrived.append(number)
        self.on_arrival(number)
        with self.changed:
            kept = self._find_answer(mutation, content)
            while kept is None and number != self.last + 1:
                if not context.is_active():
                    self.dropped.append(number)
                    raise CallEndedError("the call ended before its turn")
                self.changed.wait(0.01)
                kept = self._find_answer(mutation, content)
            if kept is not None:
                repeated = type(kept)()
                repeated.CopyFrom(kept)
                repeated.replayed = True
                return repeated
            if self.refuse_next:
                self.refuse_next = False
                raise WrongStateError("refused by the test")
            answer = operation()
            self.done.append(type(answer).__name__.removesuffix("Response"))
            self.last += 1
            self.answers[self.last] = (content, answer)
            self.changed.notify_all()
            if self.lose_answers:
                self.lose_answers -= 1
                raise UnavailableError("the answer was lost")
            return answer

    def _apply_unary(self, request, operation, context):
        content = request.SerializeToString(deterministic=True)
        return self._apply(request.mutation, content, operation, context)

    def _find_answer(self, mutation, content: bytes):
        if mutation.writer_epoch != self.epoch:
            raise WriterFencedError(
                "mutation.writer_epoch", current=self.epoch, got=mutation.writer_epoch
            )
        if mutation.sequence_number > self.last + self.max_in_flight_mutations:
            raise TooFarAheadError(f"mutation.sequence_number: the last one is {self.last}")
        if mutation.sequence_number not in self.answers:
            return None
        digest, answer = self.answers[mutation.sequence_number]
        if digest != content:
            raise SequenceReusedError("mutation.sequence_number: other content")
        return answer

    def _accumulated_rows(self) -> int:
        return sum(result.row_count for result in self.accumulated)

    def _accumulated_examples(self) -> int:
        return sum(len(result.examples) for result in self.accumulated)

    def _run(self):
        return training_pb2.Run(
            run_id=self.run_id,
            config=self.config,
            writer_epoch=self.epoch,
            last_sequence_number=self.last,
            step=self.step,
            accumulated_batches=len(self.accumulated),
            accumulated_rows=self._accumulated_rows(),
            accumulated_examples=self._accumulated_examples(),
            trainable_parameter_count=99,
            weights_version=f"w{self.step}",
        )

    def GetModelInfo(self, request, context):
        model = fake_model_info(self.tokenizer, include_tokenizer=request.include_tokenizer)
        model.limits.max_in_flight_mutations = self.max_in_flight_mutations
        return student_service_pb2.StudentServiceGetModelInfoResponse(
            model=model, teachers=["main"]
        )

    def CreateRun(self, request, context):
        self.attach_requests.append(request)
        with self.changed:
            if self.deleted and request.HasField("expected_writer_epoch"):
                raise NotFoundError(f"run_id: there is no run {request.run_id!r}")
            self.config = request.config
            if request.attach_id not in self.attached:
                if self.attached and not request.take_over:  # it has another writer
                    return student_service_pb2.CreateRunResponse(run=self._run())
                if request.take_over:
                    if request.HasField("expected_writer_epoch") and (
                        request.expected_writer_epoch != self.epoch
                    ):
                        raise WriterFencedError(
                            "expected_writer_epoch",
                            current=self.epoch,
                            got=request.expected_writer_epoch,
                        )
                    self.epoch += 1
                    self.changed.notify_all()
                self.attached[request.attach_id] = self.epoch
            if self.lose_take_overs:
                self.lose_take_overs -= 1
                raise UnavailableError("the answer was lost")
            return student_service_pb2.CreateRunResponse(
                run=self._run(), writer_epoch=self.attached[request.attach_id]
            )

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
        if not header.batch.HasField("pull"):
            if parts[-1].WhichOneof("part") != "end":
                raise IncompleteStreamError("end", "the stream ended before it")
            assert parts[-1].end.chunk_count == len(chunks)
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

        def accumulate():
            self.accumulated.append(result)
            return student_service_pb2.ForwardBackwardResponse(result=result)

        return self._apply(header.mutation, content, accumulate, context)

    def Forward(self, requests, context):
        self.calls.append("Forward")
        return student_service_pb2.ForwardResponse(result=self._receive(requests)[2])

    def OptimStep(self, request, context):
        self.calls.append("OptimStep")

        def step():
            self.step += 1
            self.learning_rates.append(request.adamw.learning_rate)
            normalizer = float(self._accumulated_rows())
            self.normalizers.append(normalizer)
            self.accumulated.clear()
            return student_service_pb2.OptimStepResponse(
                step=self.step, gradient_norm=2.0, update_norm=0.1, normalizer=normalizer
            )

        return self._apply_unary(request, step, context)

    def DiscardGradient(self, request, context):
        self.calls.append("DiscardGradient")

        def discard():
            answer = student_service_pb2.DiscardGradientResponse(
                discarded_batches=len(self.accumulated),
                discarded_rows=self._accumulated_rows(),
                discarded_examples=self._accumulated_examples(),
            )
            self.accumulated.clear()
            return answer

        return self._apply_unary(request, discard, context)

    def Sample(self, request, context):
        self.calls.append("Sample")
        self.done.append("Sample")
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

        return self._apply_unary(request, save, context)

    def LoadCheckpoint(self, request, context):
        return self._apply_unary(
            request, lambda: student_service_pb2.LoadCheckpointResponse(run=self._run()), context
        )

    def ListCheckpoints(self, request, context):
        return student_service_pb2.ListCheckpointsResponse(
            checkpoints=[{"name": "first", "step": 3, "size_bytes": 1 << 20}]
        )

    def ExportWeights(self, request, context):
        yield from self.export_pieces


def export_piece(name: str, offset: int, data: bytes, size: int) -> object:
    """A piece of an exported file."""
    return student_service_pb2.ExportWeightsResponse(
        file_name=name, byte_offset=offset, data=data, file_bytes=size
    )
