"""A run's requests and answers."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from client.errors import BrokenStreamError, ServiceError
from client.run import StudentRun
from client.settings import (
    AdamW,
    LoraConfig,
    SamplingParams,
    WeightsRef,
    batch_settings,
    scored_prompt,
    token_example,
)
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.v1 import training_pb2
from tests.client.fake_student import FakeStudent, export_piece
from tests.client.requests import EXAMPLE, TEACHER_PROMPT, pull


def test_inline_chunks_reach_the_student_unread(
    run: StudentRun, teacher: TeacherClient, fake_student: FakeStudent
) -> None:
    prompts = [scored_prompt(TEACHER_PROMPT, score_from=4)]
    sent = list(teacher.stream_top_k_messages(prompts, 5))
    result = run.forward_backward(
        [EXAMPLE], batch_settings(), chunks=teacher.stream_top_k_messages(prompts, 5)
    )
    header, examples, chunks = fake_student.batches[0]
    assert chunks == sent
    assert not header.batch.HasField("pull")
    assert examples[0].distribution_targets.prompt_offset == 4
    assert result.totals.row_count == 3
    assert result.metrics["tail_bucket_kl"] == 3.0
    assert "top_k_overlap" not in result.metrics
    assert (result.loss, result.totals.seconds.compute) == (3.0, 0.5)
    assert result.examples[0].log_probs is None


@pytest.mark.parametrize("operation", ["forward_backward", "forward"])
def test_a_stream_says_that_it_is_whole_and_a_pull_has_no_need_to(
    run: StudentRun,
    teacher: TeacherClient,
    fake_student: FakeStudent,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
) -> None:
    received = []
    genuine = fake_student._receive

    def receive(requests):
        received.append(list(requests))
        return genuine(received[-1])

    monkeypatch.setattr(fake_student, "_receive", receive)
    send = getattr(run, operation)
    chunks = list(teacher.stream_top_k_messages([scored_prompt(TEACHER_PROMPT, score_from=4)], 5))
    send([EXAMPLE], chunks=chunks)
    send(
        [token_example([1, 2], target_offset=0, token_ids=[3, 4])], batch_settings("cross_entropy")
    )
    send([EXAMPLE], pull=pull())
    kinds = [[part.WhichOneof("part") for part in parts] for parts in received]
    assert kinds[0] == ["header", "example", *["chunk"] * len(chunks), "end"]
    assert kinds[1:] == [["header", "example", "end"], ["header", "example"]]
    assert [parts[-1].end.chunk_count for parts in received[:2]] == [len(chunks), 0]


def test_token_targets_and_settings_arrive(run: StudentRun, fake_student: FakeStudent) -> None:
    example = token_example(
        [1, 2, 3],
        target_offset=1,
        token_ids=np.array([[4, 5], [6, 7]]),
        weights=np.array([[0.5, -1.0], [0.0, 2.0]]),
    )
    settings = batch_settings("cross_entropy", temperature=0.5, return_log_probs=True)
    run.forward([example], settings, weights=WeightsRef(checkpoint="c"))
    header, (sent,), _ = fake_student.batches[0]
    assert header.weights.checkpoint == "c"
    assert header.batch.objective == training_pb2.OBJECTIVE_CROSS_ENTROPY
    assert header.batch.temperature == 0.5
    assert header.batch.return_log_probs
    assert not header.batch.return_row_losses
    assert list(sent.token_targets.token_ids.shape) == [2, 2]
    assert list(sent.token_targets.weights.values) == [0.5, -1.0, 0.0, 2.0]


def test_settings_stay_as_the_caller_made_them(run: StudentRun, fake_student: FakeStudent) -> None:
    settings = batch_settings("jsd", jsd_beta=0.25)
    before = batch_settings("jsd", jsd_beta=0.25)
    run.forward_backward([EXAMPLE], settings, pull=pull())
    assert settings == before
    run.forward_backward([EXAMPLE], pull=pull())
    first, second = (header.batch for header, _, _ in fake_student.batches)
    assert (first.objective, first.jsd_beta, first.example_count) == (
        training_pb2.OBJECTIVE_JSD,
        0.25,
        1,
    )
    assert second.objective == training_pb2.OBJECTIVE_TAIL_BUCKET


def test_a_normalization_with_another_name_is_refused_before_the_call(
    run: StudentRun, fake_student: FakeStudent
) -> None:
    with pytest.raises(ValueError, match="normalization: must be one of none, rows, examples"):
        run.optim_step(AdamW(learning_rate=1e-3), normalization="tokens")
    assert fake_student.calls == []


def test_absent_settings_stay_absent(student: StudentClient, fake_student: FakeStudent) -> None:
    student.create_run("run", lora=LoraConfig(rank=4))
    assert fake_student.config is not None
    assert not fake_student.config.lora.HasField("alpha")
    student.create_run("run", lora=None)
    assert fake_student.config.WhichOneof("trainable") == "full"


def test_export_replaces_the_directory_whole(
    run: StudentRun, fake_student: FakeStudent, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "adapter"
    target.mkdir(parents=True)
    (target / "adapter_config.json").write_bytes(b"{}")
    (target / "stale.bin").write_bytes(b"old")
    fake_student.export_pieces = [
        export_piece("a.bin", 0, b"abc", 5),
        export_piece("empty.json", 0, b"", 0),
        export_piece("a.bin", 3, b"de", 5),
    ]
    files = run.export_weights(target)
    assert [file.name for file in files] == ["a.bin", "empty.json"]
    assert (target / "a.bin").read_bytes() == b"abcde"
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_that_no_export_made_is_not_replaced(
    run: StudentRun, fake_student: FakeStudent, tmp_path: Path
) -> None:
    fake_student.export_pieces = [export_piece("a.bin", 0, b"abc", 3)]
    (tmp_path / "notes").mkdir()
    run.export_weights(tmp_path / "notes")  # it was empty
    (tmp_path / "notes" / "a.bin").rename(tmp_path / "notes" / "thesis.txt")
    with pytest.raises(FileExistsError, match="holds files and is no earlier export"):
        run.export_weights(tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    "pieces",
    [
        [export_piece("a.bin", 0, b"abc", 5)],
        [export_piece("a.bin", 0, b"abc", 5), export_piece("a.bin", 4, b"e", 5)],
        [export_piece("../evil", 0, b"x", 1)],
        [export_piece("/etc/evil", 0, b"x", 1)],
        [export_piece("..", 0, b"x", 1)],
        [],
    ],
    ids=["short", "gap", "parent", "absolute", "dots", "none"],
)
def test_a_broken_export_leaves_nothing(
    run: StudentRun, fake_student: FakeStudent, tmp_path: Path, pieces: list
) -> None:
    fake_student.export_pieces = pieces
    with pytest.raises(BrokenStreamError):
        run.export_weights(tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_listing_scoring_and_sampling(student: StudentClient, run: StudentRun) -> None:
    assert [one.run_id for one in student.list_runs()] == ["run"]
    assert [one.name for one in run.list_checkpoints()] == ["first"]
    assert student.teacher_names() == ["main"]
    (completion,) = student.under("run").sample([[1, 2]], SamplingParams(max_tokens=4))
    assert completion.text.startswith("Paris")
    chunks = list(student.under("run").stream_top_k([[1, 2, 3]], 4))
    assert sum(len(chunk.token_ids) for chunk in chunks) == 2


def test_discarding_drops_the_gradient_and_says_what_it_was(run: StudentRun) -> None:
    run.forward_backward([EXAMPLE], pull=pull())
    run.forward_backward([EXAMPLE, EXAMPLE], pull=pull())
    dropped = run.discard_gradient()
    assert (dropped.discarded_batches, dropped.discarded_rows, dropped.discarded_examples) == (
        2,
        9,
        3,
    )
    assert run.state().accumulated_batches == 0
    assert run.discard_gradient().discarded_batches == 0
    assert run.state().last_sequence_number == 4


def test_delete_ends_the_run(run: StudentRun, fake_student: FakeStudent) -> None:
    run.delete(delete_checkpoints=True)
    assert fake_student.deleted


def test_no_grpc_error_escapes(student: StudentClient, fake_student: FakeStudent) -> None:
    fake_student.error = RuntimeError("secret text")
    with pytest.raises(ServiceError) as caught:
        student.get_run("run")
    assert not isinstance(caught.value, grpc.RpcError)
    assert caught.value.code == "INTERNAL"
    assert "secret" not in str(caught.value)
