"""Other families than Llama as the model of both services, their vocabularies padded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.services.local import STUDENT_MODULE, TEACHER_MODULE, LocalService
from client.settings import (
    AdamW,
    LoraConfig,
    SamplingParams,
    batch_settings,
    pulled_targets,
    token_example,
)
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.families.gemma3 import default_types, local_and_global
from tests.integration.batches import aligned
from tests.support.tiny_models import SENTENCES, write_tiny_model

PADDED_VOCAB = 600
"""More rows than the tokenizer has ids."""

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {},
    "gemma3_text": {
        "layer_count": 6,
        "layer_attention": local_and_global(default_types(6), 5),
        "local_rope_theta": 1e4,
    },
    "qwen3_moe": {},
    "qwen3_5_moe_text": {},
}


@dataclass(frozen=True)
class _Pair:
    teacher: TeacherClient
    student: StudentClient


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, marks=() if family == "qwen3_5_text" else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def pair(request, tmp_path_factory) -> Iterator[_Pair]:
    directory: Path = tmp_path_factory.mktemp("family")
    model = write_tiny_model(
        directory / "model",
        request.param,
        vocab_size=PADDED_VOCAB,
        pads_vocabulary=True,
        **FAMILIES[request.param],
    )
    common = ["--model", str(model), "--cache-dir", str(directory)]
    with (
        LocalService(TEACHER_MODULE, common, log_path=directory / "teacher.log") as teaching,
        LocalService(
            STUDENT_MODULE,
            [
                *common,
                *("--runs-dir", str(directory / "runs")),
                *("--teacher", f"main={teaching.address}"),
            ],
            log_path=directory / "student.log",
        ) as studying,
        TeacherClient(teaching.address) as teacher,
        StudentClient(studying.address) as student,
    ):
        yield _Pair(teacher, student)


def ragged(pair: _Pair) -> list[np.ndarray]:
    tokenizer = pair.teacher.tokenizer()
    prompts = [np.array(tokenizer.encode(sentence), np.int32) for sentence in SENTENCES]
    return [prompt for prompt in prompts if len(prompt) > 3]


def test_padding_of_the_vocabulary_has_no_probability(pair):
    known = pair.teacher.tokenizer().vocab_size
    assert known < PADDED_VOCAB
    for scores in pair.teacher.score(ragged(pair)[:3], top_k=known):
        assert scores.token_ids.max() < known
        np.testing.assert_allclose(np.exp(scores.log_probs).sum(-1), 1.0, atol=1e-5)
        assert np.isneginf(scores.tail_log_probs).all()


def test_scores_do_not_depend_on_the_prompts_beside(pair):
    prompts = ragged(pair)
    together = pair.teacher.score(prompts, top_k=8)
    for prompt, scores in zip(prompts, together, strict=True):
        (alone,) = pair.teacher.score([prompt], top_k=8)
        np.testing.assert_allclose(scores.log_probs, alone.log_probs, atol=1e-5)
        np.testing.assert_allclose(scores.prompt_log_probs, alone.prompt_log_probs, atol=1e-5)


@pytest.mark.slow
def test_a_student_with_the_teachers_weights_has_nothing_to_learn(pair, run_name):
    run = pair.student.create_run(run_name, lora=LoraConfig(rank=4))
    cases = [(prompt[:2], prompt[:2], prompt[2:]) for prompt in ragged(pair)]
    examples, prompts = aligned(cases)
    pull = pulled_targets("main", prompts, top_k=8)
    metrics = run.forward_backward(examples, batch_settings(), pull=pull).metrics
    assert abs(metrics["tail_bucket_kl"]) < 1e-5
    assert metrics["top_1_agreement"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LoraConfig(rank=4), None])
def test_it_learns_and_its_samples_have_the_log_probs_that_scoring_gives_them(
    pair, run_name, lora, tmp_path
):
    run = pair.student.create_run(run_name, lora=lora)
    prompts = ragged(pair)
    examples = [
        token_example(prompt[:-1], target_offset=0, token_ids=prompt[1:]) for prompt in prompts
    ]
    losses = []
    for _ in range(6):
        settings = batch_settings("cross_entropy")
        losses.append(run.forward_backward(examples, settings).loss)
        run.optim_step(AdamW(learning_rate=1e-2))
    assert losses[-1] < 0.9 * losses[0]

    starts = [prompt[:3] for prompt in prompts[:3]]
    sampling = SamplingParams(max_tokens=9, samples_per_prompt=2, ignore_end_tokens=True)
    completions = pair.student.under(run.run_id).sample(starts, sampling)
    known = pair.teacher.tokenizer().vocab_size
    for completion in completions:
        start = starts[completion.prompt_index]
        whole = np.concatenate([start, completion.token_ids])
        assert whole.max() < known
        (scored,) = pair.student.under(run.run_id).score([whole], top_k=4, score_from=len(start))
        np.testing.assert_allclose(completion.log_probs, scored.prompt_log_probs, atol=1e-4)
    run.export_weights(tmp_path / "exported")
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    assert (tmp_path / "exported" / name).is_file()
