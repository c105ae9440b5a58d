"""CreateRun: creates a run, finds it, or takes it over as its new writer."""

from functools import partial

import grpc

from distill.errors import InvalidFieldError
from distill.network.adapters import LoraSpec
from distill.rpc.deadline import remaining_seconds
from distill.v1 import student_service_pb2 as pb
from student_service.edge.formatting import format_run
from student_service.runs.names import parse_name
from student_service.runs.registry import RunRegistry


def create_or_attach(
    runs: RunRegistry,
    request: pb.CreateRunRequest,
    lora: LoraSpec | None,
    context: grpc.ServicerContext,
) -> pb.CreateRunResponse:
    """The run, and the epoch that the caller writes with.

    Args:
        runs: where it is, or will be.
        request: as it came.
        lora: the configuration it asks for.
        context: of the call.

    Raises:
        InvalidFieldError: a bad name or number.
        NotFoundError: the run of an expected writer is gone.

    What `RunRegistry.create` and `Sequencer.take_over` raise passes through.
    """
    run_id = parse_name(request.run_id, "run_id")
    attach_id = request.attach_id and parse_name(request.attach_id, "attach_id")
    expected = _expected_epoch(request)
    if expected is None:
        run, is_new = runs.create(
            run_id, lora, partial(remaining_seconds, context), attach_id=attach_id
        )
    else:
        # Its writer asks what became of its mutations: of a new run it would learn nothing.
        run, is_new = runs.find(run_id, lora), False
    if request.take_over and not is_new:
        context.add_callback(run.sequencer.wake)
        epoch, at = run.sequencer.take_over(
            expected_epoch=expected,
            attach_id=attach_id,
            timeout_seconds=remaining_seconds(context),
            is_active=context.is_active,
        )
    else:
        epoch, at = run.sequencer.attach(attach_id)
    return pb.CreateRunResponse(run=format_run(run, at), writer_epoch=epoch)


def _expected_epoch(request: pb.CreateRunRequest) -> int | None:
    if not request.HasField("expected_writer_epoch"):
        return None
    if not request.take_over:
        raise InvalidFieldError("expected_writer_epoch", "only with take_over")
    if request.expected_writer_epoch < 1:
        raise InvalidFieldError(
            "expected_writer_epoch", f"must be at least 1, got {request.expected_writer_epoch}"
        )
    return request.expected_writer_epoch
