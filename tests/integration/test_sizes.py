"""Across sizes: a bigger teacher, and a smaller student of its tokenizer, without its padding."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from client.errors import MismatchedPairError, ServiceError
from client.recipes.batches import Targets, TeacherLink
from client.recipes.off_policy import OffPolicySettings, tokenize_corpus, train_off_policy
from client.recipes.sdft import (
    PrivilegedPrompt,
    SdftSettings,
    compare_with_teacher,
    sample_completions,
    train_sdft,
)
from client.services.local import STUDENT_MODULE, TEACHER_MODULE, LocalService
from client.settings import AdamW, LoraConfig
from client.student import StudentClient
from client.teacher import TeacherClient
from tests.client.fake_server import serving
from tests.client.fake_teacher import FakeTeacher
from tests.support.tiny_models import SENTENCES, tiny_tokenizer, write_tiny_model

STUDENT_VOCAB = 420
"""Another number of tokens than the foreign teacher's tokenizer has."""

TEACHER_VOCAB = 512


def pad(model: Path) -> None:
    """Give a bigger vocabulary the student's tokenizer, and zeros where that has no token, as
    padding is: never probable."""
    tiny_tokenizer(STUDENT_VOCAB).save(str(model / "tokenizer.json"))
    path = model / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"].copy()
    embedding[STUDENT_VOCAB:] = 0
    save_file({**tensors, "model.embed_tokens.weight": embedding}, path, {"format": "pt"})


@pytest.fixture(scope="module")
def big_teacher(tmp_path_factory) -> Iterator[LocalService]:
    directory = tmp_path_factory.mktemp("big")
    model = write_tiny_model(
        directory / "model",
        vocab_size=TEACHER_VOCAB,
        layer_count=4,
        hidden_size=64,
        intermediate_size=96,
        head_count=8,
        seed=1,
    )
    pad(model)
    arguments = ["--model", str(model), "--cache-dir", str(directory)]
    with LocalService(TEACHER_MODULE, arguments, log_path=directory / "log") as service:
        yield service


@pytest.fixture(scope="module")
def foreign_teacher() -> Iterator[str]:
    """The address of a teacher with another tokenizer."""
    with serving(FakeTeacher()) as address:
        yield address


@pytest.fixture(scope="module")
def small_student(big_teacher, foreign_teacher, tmp_path_factory) -> Iterator[StudentClient]:
    directory = tmp_path_factory.mktemp("small")
    model = write_tiny_model(
        directory / "model", vocab_size=STUDENT_VOCAB, hidden_size=32, intermediate_size=48, seed=2
    )
    arguments = [
        *("--model", str(model), "--cache-dir", str(directory)),
        *("--runs-dir", str(directory / "runs")),
        *("--teacher", f"big={big_teacher.address}", "--teacher", f"foreign={foreign_teacher}"),
    ]
    with (
        LocalService(STUDENT_MODULE, arguments, log_path=directory / "log") as service,
        StudentClient(service.address) as client,
    ):
        yield client


def link(address: str, name: str, targets: Targets) -> TeacherLink:
    return TeacherLink(client=TeacherClient(address), name=name, targets=targets)


def test_the_pair_shares_a_tokenizer_and_no_size(big_teacher, small_student):
    with TeacherClient(big_teacher.address) as teacher:
        theirs, ours = teacher.model_info(), small_student.model_info()
    assert theirs.tokenizer_fingerprint == ours.tokenizer_fingerprint
    for field in ("hidden_size", "layer_count", "parameter_count"):
        assert getattr(theirs, field) > getattr(ours, field)


@pytest.mark.parametrize("targets", list(Targets))
def test_off_policy_steps_bring_a_smaller_student_to_a_bigger_teacher(
    big_teacher, small_student, run_name, targets
):
    corpus = tokenize_corpus(small_student.tokenizer(), SENTENCES, max_tokens=32)
    run = small_student.create_run(run_name, lora=None)
    history = train_off_policy(
        run=run,
        teacher=link(big_teacher.address, "big", targets),
        corpus=corpus,
        settings=OffPolicySettings(
            step_count=30,
            sequences_per_step=len(corpus),
            top_k=16,
            adamw=AdamW(learning_rate=1e-2, max_gradient_norm=1.0),
            warmup_steps=3,
            final_learning_rate_factor=0.1,
        ),
    )
    kls = [one.batch["tail_bucket_kl"] for one in history]
    assert kls[-1] < 0.5 * kls[0]


def test_on_policy_steps_bring_a_smaller_student_to_a_bigger_teacher(
    big_teacher, small_student, run_name
):
    tokenizer = small_student.tokenizer()
    starts = [tokenizer.encode(sentence)[:6] for sentence in SENTENCES[:4]]
    prompts = [PrivilegedPrompt(student_prompt=start, teacher_prompt=start) for start in starts]
    teacher = link(big_teacher.address, "big", Targets.PULL)
    settings = SdftSettings(
        step_count=12,
        prompts_per_step=4,
        max_completion_tokens=8,
        top_k=16,
        adamw=AdamW(learning_rate=1e-2, max_gradient_norm=1.0),
    )
    run = small_student.create_run(run_name, lora=None)
    before = sample_completions(small_student, run, prompts, settings, seed=99)

    def kl_on(completions):
        compared = compare_with_teacher(
            run=run, teacher=teacher, prompts=prompts, completions=completions, settings=settings
        )
        return compared.metrics["tail_bucket_kl"]

    at_first = kl_on(before)
    train_sdft(student=small_student, run=run, teacher=teacher, prompts=prompts, settings=settings)
    after = sample_completions(small_student, run, prompts, settings, seed=99)
    assert kl_on(before) < 0.8 * at_first
    assert kl_on(after) < 0.8 * at_first


def test_a_teacher_with_another_tokenizer_is_refused_with_both_fingerprints_and_a_remedy(
    foreign_teacher, small_student, run_name
):
    ours = small_student.model_info().tokenizer_fingerprint
    run = small_student.create_run(run_name, lora=LoraConfig(rank=4))
    for targets, name in ((Targets.INLINE, "teacher fake"), (Targets.PULL, "'foreign'")):
        teacher = link(foreign_teacher, "foreign", targets)
        theirs = teacher.client.model_info().tokenizer_fingerprint
        with pytest.raises((MismatchedPairError, ServiceError)) as caught:
            train_off_policy(
                run=run,
                teacher=teacher,
                corpus=[[5, 6, 7]],
                settings=OffPolicySettings(step_count=1),
            )
        message = str(caught.value)
        assert isinstance(caught.value, MismatchedPairError) == (targets is Targets.INLINE)
        assert name in message
        assert ours in message
        assert theirs in message
        assert ours != theirs
        assert "start both with models of one tokenizer" in message
    assert run.state().last_sequence_number == 0
