"""The demo's course, on services of this process; tests/integration runs it on real ones."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from client.demos.sdft import DemoSettings, run_demo
from client.demos.sdft_summary import print_summary
from client.errors import DatasetError, MismatchedPairError, ServiceError
from client.recipes.batches import Targets
from client.recipes.sdft import SdftSettings
from client.services.pair import PairError, RunningPair
from client.settings import LoraConfig
from distill.v1 import student_service_pb2
from tests.client.fake_server import serving
from tests.client.fake_student import FakeStudent, export_piece
from tests.client.fake_teacher import FakeTeacher

REQUIRED_KEYS = {
    "objective_first",
    "objective_last",
    "heldout_kl_before",
    "heldout_kl_after",
    "success_before",
    "success_after",
    "success_teacher",
    "tokens_per_second_teacher",
    "tokens_per_second_student",
    "wall_seconds",
}


def write_questions(path: Path, subjects: str) -> Path:
    lines = [
        json.dumps({"question": f"What is {subject}?", "demonstration": "Answer: Paris."})
        for subject in subjects
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def settings(
    fake_teacher: FakeTeacher, fake_student: FakeStudent, tmp_path: Path
) -> Iterator[DemoSettings]:
    fake_student.export_pieces = [export_piece("adapter_config.json", 0, b"{}", 2)]
    with serving(fake_teacher) as teacher, serving(fake_student) as student:
        yield DemoSettings(
            out=tmp_path / "out",
            training_file=write_questions(tmp_path / "train.jsonl", "abcdef"),
            heldout_file=write_questions(tmp_path / "heldout.jsonl", "xyz"),
            services=RunningPair(teacher=teacher, student=student, wait_seconds=10),
            targets=Targets.PULL,
            teacher_name="main",
            lora=LoraConfig(rank=16),
            training=SdftSettings(step_count=2, prompts_per_step=2, top_k=4),
        )


def test_the_demo_measures_before_and_after_by_one_definition(
    settings: DemoSettings, fake_student: FakeStudent, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_demo(settings)
    assert json.loads((settings.out / "summary.json").read_text()) == json.loads(
        json.dumps(summary)
    )
    assert summary.keys() >= REQUIRED_KEYS
    # The fake answers in the format from its first step on, and its KL is 3 / (1 + step).
    assert (summary["success_before"], summary["success_after"]) == (0, 1)
    assert summary["success_teacher"] == 1
    assert summary["heldout_kl_before"] == 3
    assert summary["heldout_kl_after"] == 1
    assert (summary["objective_first"], summary["objective_last"]) == (1, 0.5)
    assert summary["tokens_per_second_teacher"] > 0
    lines = (settings.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert (settings.out / "adapter" / "adapter_config.json").read_text() == "{}"
    assert (settings.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "step   2/2" in printed
    assert "the teacher under its privileged prompt: 3/3" in printed

    evaluations = [
        [list(example.input_tokens.values) for example in examples]
        for header, examples, _ in fake_student.batches
        if isinstance(header, student_service_pb2.ForwardHeader)
    ]
    assert [len(inputs) for inputs in evaluations] == [3, 3, 3, 3]
    # The teacher's answers before and after; between and at the end what the student said then.
    assert evaluations[0] == evaluations[2] == evaluations[3] != evaluations[1]


def test_the_teacher_sees_more_than_the_student(
    settings: DemoSettings, fake_student: FakeStudent
) -> None:
    run_demo(settings)
    header, examples, _ = fake_student.batches[1]  # on what the student said
    tokenizer = fake_student.tokenizer
    for example, prompt in zip(examples, header.batch.pull.scoring.prompts, strict=True):
        student_text = tokenizer.decode(example.input_tokens.values)
        teacher_text = tokenizer.decode(prompt.token_ids.values)
        assert "Paris." not in student_text.split("assistant")[0]
        # Two shown questions, the question itself, and the sampled completion.
        assert teacher_text.count("Answer: Paris.") == 3
        assert prompt.score_from == example.distribution_targets.prompt_offset


def test_an_earlier_summary_does_not_survive_a_failure(
    settings: DemoSettings, fake_student: FakeStudent
) -> None:
    run_demo(settings)
    fake_student.attached.clear()  # the second demo makes a run of its own
    fake_student.refuse_next = True
    with pytest.raises(PairError, match="refused by the test"):
        run_demo(settings)
    assert not (settings.out / "summary.json").exists()


def test_a_pair_that_cannot_work_together_is_refused(
    settings: DemoSettings, fake_student: FakeStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PairError, match=r"no teacher named 'other' \(it knows: main\)"):
        run_demo(replace(settings, teacher_name="other"))
    monkeypatch.setattr(fake_student.tokenizer, "fingerprint", "another")
    with pytest.raises(MismatchedPairError, match=r"tokenizer_fingerprint.*another"):
        run_demo(settings)


def test_heldout_questions_that_are_trained_on_are_refused(settings: DemoSettings) -> None:
    with pytest.raises(DatasetError, match="in the training set"):
        run_demo(replace(settings, heldout_file=settings.training_file))


def test_services_that_do_not_become_ready_are_reported(settings: DemoSettings) -> None:
    nobody = RunningPair(teacher="127.0.0.1:1", student="127.0.0.1:1", wait_seconds=0.2)
    with pytest.raises(ServiceError, match="did not become ready within"):
        run_demo(replace(settings, services=nobody))


def test_the_summary_says_when_the_teacher_cannot_do_it(settings: DemoSettings) -> None:
    summary = run_demo(settings)
    for success, said in ((1.0, False), (0.25, True)):
        console = Console(record=True, width=120)
        print_summary({**summary, "success_teacher": success}, settings.out, console)
        text = console.export_text()
        assert ("a student can learn nothing from it" in text) is said
        assert "3.000" in text
        assert "down by 67% over 3 questions" in text
