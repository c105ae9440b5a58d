"""The student's gRPC methods. Each parses its request, makes one call, and formats the answer."""

from collections.abc import Iterator
from functools import partial

import grpc

from distill.engine.weights import ModelWeights, base_weights
from distill.errors import InvalidFieldError, NotFoundError
from distill.network.adapters import model_targets
from distill.rpc.deadline import remaining_seconds
from distill.rpc.scoring_service import ScoringService
from distill.v1 import student_service_pb2 as pb
from distill.v1 import student_service_pb2_grpc, training_pb2
from student_service.edge.attachments import create_or_attach
from student_service.edge.batch_stream import BatchReader
from student_service.edge.distributions import with_targets
from student_service.edge.formatting import (
    format_batch_result,
    format_checkpoint,
    format_file,
    format_run,
)
from student_service.edge.mutations import apply_once, make_ticket, mutate, replayed
from student_service.edge.teacher_pool import TeacherPool
from student_service.edge.validation import (
    check_mutation,
    parse_adamw,
    parse_normalization,
    parse_run_config,
)
from student_service.runs.caller import Caller
from student_service.runs.names import parse_name
from student_service.runs.registry import RunRegistry
from student_service.runs.run import Run
from student_service.runs.run_state import RunState
from student_service.runs.sequencer import Committed
from student_service.runs.weight_files import export_files


class StudentServicer(student_service_pb2_grpc.StudentServiceServicer):
    """Trains runs on one base model."""

    def __init__(
        self,
        scoring: ScoringService,
        *,
        runs: RunRegistry,
        teachers: TeacherPool,
    ) -> None:
        self._scoring = scoring
        self._model = scoring.engine.model
        self._queue = scoring.engine.queue
        self._limits = scoring.limits
        self._runs = runs
        self._teachers = teachers
        self._vocab_size = self._model.config.valid_vocab_size

    def GetModelInfo(
        self, request: pb.StudentServiceGetModelInfoRequest, context: grpc.ServicerContext
    ) -> pb.StudentServiceGetModelInfoResponse:
        """See the proto."""
        info = self._scoring.describe(include_tokenizer=request.include_tokenizer)
        return pb.StudentServiceGetModelInfoResponse(
            model=info,
            teachers=self._teachers.names,
            lora_target_modules=model_targets(self._model.config),
        )

    def CreateRun(
        self, request: pb.CreateRunRequest, context: grpc.ServicerContext
    ) -> pb.CreateRunResponse:
        """See the proto."""
        lora = parse_run_config(request.config, self._model.config)
        return create_or_attach(self._runs, request, lora, context)

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        """See the proto."""
        return pb.GetRunResponse(run=format_run(self._run(request.run_id)))

    def ListRuns(
        self, request: pb.ListRunsRequest, context: grpc.ServicerContext
    ) -> pb.ListRunsResponse:
        """See the proto."""
        return pb.ListRunsResponse(runs=[format_run(run) for run in self._runs.list()])

    def DeleteRun(
        self, request: pb.DeleteRunRequest, context: grpc.ServicerContext
    ) -> pb.DeleteRunResponse:
        """See the proto."""

        header = request.mutation
        ticket = make_ticket(header, "DeleteRun", request.delete_checkpoints)

        def delete(run: Run, state: RunState) -> tuple[RunState, pb.DeleteRunResponse]:
            if request.delete_checkpoints:
                run.delete_checkpoints()
            self._runs.remove(run, ticket)
            return state, pb.DeleteRunResponse()

        # The run's kept answers went with it. The registry remembers this one mutation of it.
        repeated = pb.DeleteRunResponse(replayed=True)
        if self._runs.deleted_by(header.run_id) == ticket:
            return repeated  # also where another run has the name by now
        try:
            return mutate(self._runs, header, ticket, context, delete)
        except NotFoundError:
            if self._runs.deleted_by(header.run_id) != ticket:
                raise
            return repeated

    def ForwardBackward(
        self, request_iterator: Iterator[pb.ForwardBackwardRequest], context: grpc.ServicerContext
    ) -> pb.ForwardBackwardResponse:
        """See the proto."""
        reader = BatchReader(request_iterator, self._limits, self._vocab_size)
        header: pb.ForwardBackwardHeader = reader.header()
        mutation = header.mutation
        check_mutation(mutation, "header.mutation")
        run = self._runs.get(mutation.run_id, "header.mutation.run_id")
        received = reader.batch(header.batch, self._teachers)
        ticket = make_ticket(mutation, "ForwardBackward", received.digest, field="header.mutation")
        repeated = run.sequencer.repeated(ticket)
        if isinstance(repeated, pb.ForwardBackwardResponse):
            return replayed(repeated)
        # Outside of the turn, so that pulling overlaps with the compute of the batch before.
        batch, pulled_bytes, target_seconds = with_targets(
            received, context, self._teachers, self._limits, self._vocab_size
        )

        def apply(state: RunState) -> tuple[RunState, pb.ForwardBackwardResponse]:
            summed, outcome, seconds = run.operations.forward_backward(
                state, batch, partial(remaining_seconds, context)
            )
            result = format_batch_result(
                outcome,
                header.batch,
                pulled_bytes=pulled_bytes,
                seconds={"targets": target_seconds, **seconds},
            )
            return summed, pb.ForwardBackwardResponse(result=result)

        return apply_once(run, ticket, apply, context)

    def Forward(
        self, request_iterator: Iterator[pb.ForwardRequest], context: grpc.ServicerContext
    ) -> pb.ForwardResponse:
        """See the proto."""
        reader = BatchReader(request_iterator, self._limits, self._vocab_size)
        header: pb.ForwardHeader = reader.header()
        run = self._run(header.run_id, "header.run_id")
        checkpoint = _parse_checkpoint(header.weights, "header.weights")
        received = reader.batch(header.batch, self._teachers)
        batch, pulled_bytes, target_seconds = with_targets(
            received, context, self._teachers, self._limits, self._vocab_size
        )
        outcome, seconds = run.forward(
            batch, checkpoint, header.weights.HasField("base"), _caller(context)
        )
        result = format_batch_result(
            outcome,
            header.batch,
            pulled_bytes=pulled_bytes,
            seconds={"targets": target_seconds, **seconds},
        )
        return pb.ForwardResponse(result=result)

    def OptimStep(
        self, request: pb.OptimStepRequest, context: grpc.ServicerContext
    ) -> pb.OptimStepResponse:
        """See the proto."""
        settings = parse_adamw(request.adamw)
        normalization = parse_normalization(request.normalization)
        ticket = make_ticket(request.mutation, "OptimStep", settings, normalization)

        def step(run: Run, state: RunState) -> tuple[RunState, pb.OptimStepResponse]:
            stepped, answer = run.operations.optim_step(
                state,
                settings,
                normalization,
                ticket.sequence_number,
                partial(remaining_seconds, context),
            )
            return stepped, pb.OptimStepResponse(**answer)

        return mutate(self._runs, request.mutation, ticket, context, step)

    def DiscardGradient(
        self, request: pb.DiscardGradientRequest, context: grpc.ServicerContext
    ) -> pb.DiscardGradientResponse:
        """See the proto."""
        ticket = make_ticket(request.mutation, "DiscardGradient")

        def discard(run: Run, state: RunState) -> tuple[RunState, pb.DiscardGradientResponse]:
            return run.operations.discard_gradient(state), pb.DiscardGradientResponse(
                discarded_batches=state.accumulated_batches,
                discarded_rows=state.accumulated_rows,
                discarded_examples=state.accumulated_examples,
            )

        return mutate(self._runs, request.mutation, ticket, context, discard)

    def Sample(
        self, request: pb.StudentServiceSampleRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StudentServiceSampleResponse]:
        """See the proto."""
        job = self._scoring.parse_sampling(request.sampling)
        weights = self._weights(request.run_id, request.weights, context)
        for sequence in self._scoring.sample(job, weights, context):
            yield pb.StudentServiceSampleResponse(sequence=sequence)

    def StreamTopK(
        self, request: pb.StudentServiceStreamTopKRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StudentServiceStreamTopKResponse]:
        """See the proto."""
        jobs = self._scoring.parse_scoring(request.scoring)
        weights = self._weights(request.run_id, request.weights, context)
        for chunk in self._scoring.score(jobs, weights, context):
            response = pb.StudentServiceStreamTopKResponse()
            response.chunk.MergeFromString(chunk)
            yield response

    def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.SaveCheckpointResponse:
        """See the proto."""
        name = parse_name(request.name, "name")

        ticket = make_ticket(request.mutation, "SaveCheckpoint", name, request.overwrite)

        def save(run: Run, state: RunState) -> tuple[RunState, pb.SaveCheckpointResponse]:
            saved = run.operations.save_checkpoint(
                state, name, request.overwrite, ticket, partial(remaining_seconds, context)
            )
            return state, pb.SaveCheckpointResponse(checkpoint=format_checkpoint(saved))

        return mutate(self._runs, request.mutation, ticket, context, save)

    def LoadCheckpoint(
        self, request: pb.LoadCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.LoadCheckpointResponse:
        """See the proto."""
        name = parse_name(request.name, "name")

        ticket = make_ticket(request.mutation, "LoadCheckpoint", name)

        def load(run: Run, state: RunState) -> tuple[RunState, pb.LoadCheckpointResponse]:
            loaded = run.operations.load_checkpoint(
                state, name, partial(remaining_seconds, context)
            )
            # Described as it will be committed.
            after = Committed(
                state=loaded,
                sequence_number=ticket.sequence_number,
                writer_epoch=ticket.writer_epoch,
            )
            return loaded, pb.LoadCheckpointResponse(run=format_run(run, after))

        return mutate(self._runs, request.mutation, ticket, context, load)

    def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: grpc.ServicerContext
    ) -> pb.ListCheckpointsResponse:
        """See the proto."""
        found = self._run(request.run_id).list_checkpoints()
        return pb.ListCheckpointsResponse(checkpoints=[format_checkpoint(info) for info in found])

    def ExportWeights(
        self, request: pb.ExportWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportWeightsResponse]:
        """See the proto."""
        run = self._run(request.run_id)
        checkpoint = _parse_checkpoint(request.weights)
        if request.weights.HasField("base"):
            raise InvalidFieldError("weights.base", "the base model is not a run's to export")
        caller = _caller(context)
        trainable = (
            run.state.trainable
            if checkpoint is None
            else run.checkpoint_trainable(checkpoint, caller)
        )
        run_piece = partial(caller.run, self._queue)
        for file in export_files(self._model, run.lora, trainable, run_piece):
            yield from format_file(file)

    def _run(self, run_id: str, field: str = "run_id") -> Run:
        """The run of that name.

        Raises:
            InvalidFieldError: it is not a name.
            NotFoundError: there is no such run.
        """
        return self._runs.get(parse_name(run_id, field), field)

    def _weights(
        self, run_id: str, reference: training_pb2.WeightsRef, context: grpc.ServicerContext
    ) -> ModelWeights:
        """The weights to score or sample under.

        Raises:
            InvalidFieldError: a run's weights are asked for without a run.
            NotFoundError: no such run or checkpoint.
        """
        checkpoint = _parse_checkpoint(reference)
        source = reference.WhichOneof("source")
        if not run_id:
            if source not in (None, "base"):
                raise InvalidFieldError("run_id", f"must be given for {source} weights")
            return base_weights(self._model)
        run = self._run(run_id)
        if source == "base":
            return base_weights(self._model)
        if checkpoint is not None:
            return run.checkpoint_weights(checkpoint, _caller(context))
        return run.current_weights(_caller(context))


def _caller(context: grpc.ServicerContext) -> Caller:
    return Caller(
        remaining_seconds=partial(remaining_seconds, context),
        is_active=context.is_active,
        on_end=context.add_callback,
    )


def _parse_checkpoint(reference: training_pb2.WeightsRef, field: str = "weights") -> str | None:
    """The name of the checkpoint that is asked for; None for other weights."""
    if not reference.HasField("checkpoint"):
        return None
    return parse_name(reference.checkpoint, f"{field}.checkpoint")
