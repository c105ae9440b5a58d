"""What the contract says of single messages, asked of real services through bare stubs."""

import threading

import grpc
import jax
import numpy as np
import pytest

from client.errors import parse_error
from client.services.local import LocalService
from client.settings import LoraConfig, batch_settings, token_example
from distill.limits import MAX_MESSAGE_BYTES
from distill.models.loading import load_model
from distill.network.functional import head_kernel, hidden_states
from distill.tensors import encode_int32
from distill.v1 import scoring_pb2, student_service_pb2_grpc, training_pb2
from distill.v1 import student_service_pb2 as pb
from tests.integration.batches import LORA, move, tokens
from tests.support.hazards import HAZARDS
from tests.support.training_messages import forward_backward_parts
from tests.support.waiting import wait_until

CROSS_ENTROPY = training_pb2.OBJECTIVE_CROSS_ENTROPY


@pytest.fixture
def stub(student_process: LocalService):
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    with grpc.insecure_channel(student_process.address, options=options) as channel:
        yield student_service_pb2_grpc.StudentServiceStub(channel)


def mutation(run_name, number=1, epoch=1):
    return training_pb2.Mutation(run_id=run_name, writer_epoch=epoch, sequence_number=number)


def create(stub, run_name, **fields):
    config = training_pb2.RunConfig(lora=training_pb2.LoraConfig(rank=2))
    return stub.CreateRun(pb.CreateRunRequest(run_id=run_name, config=config, **fields)).run


def hard(seed=0):
    ids = tokens(seed, 10)
    return training_pb2.Example(
        input_tokens=encode_int32(ids[:-1]),
        token_targets=training_pb2.TokenTargets(token_ids=encode_int32(ids[1:])),
    )


def parts(header, examples):
    return forward_backward_parts(examples, mutation=header, objective=CROSS_ENTROPY)


def send(stub, header, request):
    stream = forward_backward_parts(
        request.examples, request.chunks, mutation=header, **request.batch
    )
    return stub.ForwardBackward(stream)


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return parse_error(caught.value)


# One of each kind: tests/student_service/edge goes through all of them.
SENT_HAZARDS = [
    "mixed 1-D then 2-D",
    "overflowing shape product",
    "NaN weight",
    "id V",
    "temperature 0.0 for cross_entropy",
    "fewer examples than said",
    "-inf log-prob",
    "id beyond V in a chunk",
    "chunk twice",
]


def test_hazards_are_invalid_arguments_that_change_nothing(stub, run_name):
    create(stub, run_name)
    stub.ForwardBackward(parts(mutation(run_name), [hard()]))
    before = stub.GetRun(pb.GetRunRequest(run_id=run_name))
    for name in SENT_HAZARDS:
        hazard = HAZARDS[name]
        error = refused(lambda wrong=hazard.request: send(stub, mutation(run_name, 2), wrong))
        assert (error.code, error.field) == ("INVALID_ARGUMENT", hazard.field), name
        assert stub.GetRun(pb.GetRunRequest(run_id=run_name)) == before, name
    # The number is free, and the gradient sum is what it was.
    step = stub.OptimStep(
        pb.OptimStepRequest(
            mutation=mutation(run_name, 2), adamw=training_pb2.AdamW(learning_rate=0.0)
        )
    )
    assert step.normalizer == 1.0
    clean = f"{run_name}-clean"
    create(stub, clean)
    stub.ForwardBackward(parts(mutation(clean), [hard()]))
    reference = stub.OptimStep(
        pb.OptimStepRequest(
            mutation=mutation(clean, 2), adamw=training_pb2.AdamW(learning_rate=0.0)
        )
    )
    assert step.gradient_norm == reference.gradient_norm


def test_stream_that_ends_before_its_end_part_changes_nothing(stub, run_name):
    create(stub, run_name)
    whole = list(parts(mutation(run_name), [hard(), hard(seed=1)]))
    for cut in range(len(whole)):
        error = refused(lambda sent=whole[:cut]: stub.ForwardBackward(iter(sent)))
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INCOMPLETE_STREAM"), cut
    run = stub.GetRun(pb.GetRunRequest(run_id=run_name)).run
    assert (run.last_sequence_number, run.accumulated_batches) == (0, 0)
    assert not stub.ForwardBackward(iter(whole)).replayed


def test_step_without_a_gradient_is_a_failed_precondition(stub, run_name):
    create(stub, run_name)
    request = pb.OptimStepRequest(
        mutation=mutation(run_name), adamw=training_pb2.AdamW(learning_rate=0.1)
    )
    assert refused(lambda: stub.OptimStep(request)).code == "FAILED_PRECONDITION"
    assert stub.GetRun(pb.GetRunRequest(run_id=run_name)).run.last_sequence_number == 0


def test_repeated_requests_are_answered_again_and_applied_once(stub, run_name):
    create(stub, run_name)
    first = stub.ForwardBackward(parts(mutation(run_name), [hard()]))
    again = stub.ForwardBackward(parts(mutation(run_name), [hard()]))
    assert (first.replayed, again.replayed) == (False, True)
    assert first.result == again.result
    assert stub.GetRun(pb.GetRunRequest(run_id=run_name)).run.accumulated_batches == 1
    spelled = forward_backward_parts(
        [hard()], mutation=mutation(run_name), objective=CROSS_ENTROPY, temperature=1.0
    )
    assert stub.ForwardBackward(spelled).replayed
    other = refused(lambda: stub.ForwardBackward(parts(mutation(run_name), [hard(seed=1)])))
    assert other.code == "ABORTED"


def test_requests_that_arrive_out_of_order_apply_in_order(stub, run_name):
    create(stub, run_name)
    answers = {}

    def send(number):
        request = parts(mutation(run_name, number), [hard(seed=number)])
        answers[number] = stub.ForwardBackward(request, timeout=60)

    threads = [threading.Thread(target=send, args=(number,)) for number in (3, 2, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [1, 2, 3]
    assert stub.GetRun(pb.GetRunRequest(run_id=run_name)).run.accumulated_batches == 3


def steps(stub, run_name, numbers, timeout=None):
    """Steps under way, one for each number."""
    settings = training_pb2.AdamW(learning_rate=0.1)
    return [
        stub.OptimStep.future(
            pb.OptimStepRequest(mutation=mutation(run_name, number), adamw=settings),
            timeout=timeout,
        )
        for number in numbers
    ]


PLACES_TO_WAIT = 32  # half of the service's 64 request slots


def test_waiting_requests_leave_room_for_the_one_they_wait_for(stub, run_name):
    create(stub, run_name)
    waiting = {
        number: stub.ForwardBackward.future(parts(mutation(run_name, number), [hard()]), timeout=60)
        for number in range(2, 65)
    }
    wait_until(lambda: sum(call.done() for call in waiting.values()) == 63 - PLACES_TO_WAIT)
    refusals = [call for call in waiting.values() if call.done()]
    assert {parse_error(call.exception()).reason for call in refusals} == {"TOO_MANY_REQUESTS"}
    assert not stub.ForwardBackward(parts(mutation(run_name), [hard()]), timeout=20).replayed
    for number, call in sorted(waiting.items()):
        if call in refusals:
            stub.ForwardBackward(parts(mutation(run_name, number), [hard()]), timeout=20)
        else:
            call.result(timeout=20)
    assert stub.GetRun(pb.GetRunRequest(run_id=run_name)).run.accumulated_batches == 64


def test_cancelled_requests_give_their_places_back(stub, run_name):
    create(stub, run_name)
    cancelled = steps(stub, run_name, range(2, 65))
    wait_until(lambda: sum(call.done() for call in cancelled) == 63 - PLACES_TO_WAIT)
    for call in cancelled:
        call.cancel()

    def all_may_wait():
        probes = steps(stub, run_name, range(2, 2 + PLACES_TO_WAIT), timeout=0.5)
        return {call.code().name for call in probes} == {"DEADLINE_EXCEEDED"}

    wait_until(all_may_wait)


def test_new_writer_fences_the_one_before(stub, run_name):
    first = create(stub, run_name)
    second = create(stub, run_name, take_over=True)
    assert second.writer_epoch == first.writer_epoch + 1
    old = refused(lambda: stub.ForwardBackward(parts(mutation(run_name), [hard()])))
    assert old.code == "ABORTED"
    header = mutation(run_name, epoch=second.writer_epoch)
    assert not stub.ForwardBackward(parts(header, [hard()])).replayed


def named_calls(stub, run_name, name):
    """Every request that names a run or a checkpoint, with `name` there → the field."""
    config = training_pb2.RunConfig(full=training_pb2.FullConfig())
    weights = training_pb2.WeightsRef(checkpoint=name)
    prompt = encode_int32(tokens(0, 4))
    sampling = scoring_pb2.Sampling(prompts=[prompt], params={"max_tokens": 1})
    scoring = scoring_pb2.Scoring(prompts=[{"token_ids": prompt}], top_k=2)

    def evaluate(run_id, weights=None):
        header = pb.ForwardHeader(
            run_id=run_id,
            weights=weights,
            batch=training_pb2.Batch(objective=CROSS_ENTROPY, example_count=1),
        )
        requests = [
            pb.ForwardRequest(header=header),
            pb.ForwardRequest(example=hard()),
            pb.ForwardRequest(end=training_pb2.BatchEnd()),
        ]
        return stub.Forward(iter(requests))

    def sample(run_id, weights=None):
        return list(
            stub.Sample(
                pb.StudentServiceSampleRequest(run_id=run_id, weights=weights, sampling=sampling)
            )
        )

    def score(run_id, weights=None):
        return list(
            stub.StreamTopK(
                pb.StudentServiceStreamTopKRequest(run_id=run_id, weights=weights, scoring=scoring)
            )
        )

    def export(run_id, weights=None):
        return list(stub.ExportWeights(pb.ExportWeightsRequest(run_id=run_id, weights=weights)))

    header = mutation(run_name)
    calls = [
        ("run_id", lambda: stub.CreateRun(pb.CreateRunRequest(run_id=name, config=config))),
        ("run_id", lambda: stub.GetRun(pb.GetRunRequest(run_id=name))),
        ("run_id", lambda: stub.ListCheckpoints(pb.ListCheckpointsRequest(run_id=name))),
        ("name", lambda: stub.SaveCheckpoint(pb.SaveCheckpointRequest(mutation=header, name=name))),
        ("name", lambda: stub.LoadCheckpoint(pb.LoadCheckpointRequest(mutation=header, name=name))),
        ("mutation.run_id", lambda: stub.DeleteRun(pb.DeleteRunRequest(mutation=mutation(name)))),
        ("header.run_id", lambda: evaluate(name)),
        ("header.weights.checkpoint", lambda: evaluate(run_name, weights)),
        ("run_id", lambda: export(name)),
        ("weights.checkpoint", lambda: export(run_name, weights)),
        ("weights.checkpoint", lambda: sample(run_name, weights)),
        ("weights.checkpoint", lambda: score(run_name, weights)),
    ]
    if name:  # without a run these two are of the base model
        calls += [("run_id", lambda: sample(name)), ("run_id", lambda: score(name))]
    return calls


@pytest.mark.parametrize(
    "name",
    ["../up", "../../other/checkpoints/first", "a/b", "", ".x", "x" * 65, "x" * 20_000],
    ids=lambda name: name[:12] or "empty",
)
def test_names_that_could_leave_their_directory_are_refused_everywhere(stub, run_name, name):
    create(stub, run_name)
    for field, call in named_calls(stub, run_name, name):
        error = refused(call)
        assert (error.code, error.field) == ("INVALID_ARGUMENT", field)


def test_unknown_run_and_checkpoint_are_not_found(stub, run_name):
    assert refused(lambda: stub.GetRun(pb.GetRunRequest(run_id=run_name))).code == "NOT_FOUND"
    create(stub, run_name)
    load = pb.LoadCheckpointRequest(mutation=mutation(run_name), name="nothing")
    assert refused(lambda: stub.LoadCheckpoint(load)).code == "NOT_FOUND"


def test_cancelled_stream_leaves_the_service_free(teacher):
    prompts = [tokens(seed, 400) for seed in range(40)]
    stream = teacher.stream_top_k(prompts, 50)
    next(stream)
    stream.close()
    (scores,) = teacher.score([tokens(1, 30)], 5, timeout_seconds=60)
    assert scores.token_ids.shape == (29, 5)


def test_exported_full_weights_load_again_and_give_the_same_log_probs(student, run_name, tmp_path):
    run = student.create_run(run_name, lora=None)
    move(run)
    ids = tokens(5, 20)
    example = token_example(ids[:-1], target_offset=0, token_ids=ids[1:])
    settings = batch_settings("cross_entropy", return_log_probs=True)
    expected = run.forward([example], settings).examples[0].log_probs
    run.export_weights(tmp_path / "exported")
    exported = load_model(str(tmp_path / "exported"))
    hidden = hidden_states(exported.graph, exported.parameters, ids[None, :-1])[0]
    log_q = jax.nn.log_softmax(hidden @ head_kernel(exported.config, exported.parameters).T)
    np.testing.assert_allclose(np.asarray(log_q)[np.arange(19), ids[1:]], expected, atol=1e-4)


def test_exported_adapter_has_the_files_that_peft_reads(student, run_name, tmp_path):
    run = student.create_run(run_name, lora=LORA)
    move(run)
    files = run.export_weights(tmp_path / "adapter")
    assert {path.name for path in files} == {"adapter_config.json", "adapter_model.safetensors"}


def test_repeated_deletion_gets_the_first_answer_again(stub, run_name):
    create(stub, run_name)
    stub.ForwardBackward(parts(mutation(run_name), [hard()]))
    request = pb.DeleteRunRequest(mutation=mutation(run_name, 2))
    assert not stub.DeleteRun(request).replayed
    assert stub.DeleteRun(request).replayed
    other = pb.DeleteRunRequest(mutation=mutation(run_name, 2), delete_checkpoints=True)
    assert refused(lambda: stub.DeleteRun(other)).code == "NOT_FOUND"
    late = refused(lambda: stub.ForwardBackward(parts(mutation(run_name, 3), [hard()])))
    assert late.code == "NOT_FOUND"


def test_writer_of_a_deleted_run_is_fenced_from_a_new_one_of_its_name(stub, run_name):
    create(stub, run_name)
    deletion = pb.DeleteRunRequest(mutation=mutation(run_name))
    stub.DeleteRun(deletion)
    again = create(stub, run_name)
    assert (again.writer_epoch, again.last_sequence_number) == (2, 0)
    late = refused(lambda: stub.ForwardBackward(parts(mutation(run_name), [hard()])))
    assert (late.code, late.reason) == ("ABORTED", "WRITER_FENCED")
    assert stub.DeleteRun(deletion).replayed  # of the first run, and not of this one
    assert not stub.ForwardBackward(parts(mutation(run_name, epoch=2), [hard()])).replayed


def test_deleted_run_can_come_back_with_its_checkpoint(student, run_name):
    lora = LoraConfig(rank=3)
    run = student.create_run(run_name, lora=lora)
    move(run)
    run.save_checkpoint("kept")
    run.delete()
    again = student.create_run(run_name, lora=lora)
    assert again.load_checkpoint("kept").step == 1
    move(again)
    assert again.state().step == 2
    again.delete(delete_checkpoints=True)
    fresh = student.create_run(run_name, lora=lora)
    assert fresh.list_checkpoints() == []
