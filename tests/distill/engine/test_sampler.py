"""Sampling: reproducible, restricted as asked, ended as asked, and consistent with scoring."""

from dataclasses import replace

import numpy as np
import pytest

from distill.arrays import Int32Array
from distill.engine.samples import SampleJob
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import ModelWeights
from distill.models.loading import LoadedModel
from distill.samples import StopReason
from tests.distill.engine.sampling_laws import DenseLogits, RunJob, assert_same


def test_the_same_seed_gives_the_same_samples(run_job: RunJob, prompts: list[Int32Array]) -> None:
    job = SampleJob(prompts=prompts, max_tokens=20, seed=11, samples_per_prompt=2)
    first, again = run_job(job), run_job(job)
    for index, sample in first.items():
        assert_same(sample, again[index])
    for seed in (12, -11, 11 + (1 << 32)):
        other = run_job(replace(job, seed=seed))
        assert any(
            first[index].token_ids.tolist() != other[index].token_ids.tolist() for index in first
        )


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(
    run_job: RunJob, prompts: list[Int32Array]
) -> None:
    alone = run_job(SampleJob(prompts=prompts[:1], max_tokens=20, seed=3))
    together = run_job(SampleJob(prompts=prompts, max_tokens=20, seed=3, samples_per_prompt=3))
    assert_same(alone[0, 0], together[0, 0])


def test_more_sequences_than_a_batch_holds_are_all_sampled(
    run_job: RunJob, prompts: list[Int32Array]
) -> None:
    many = run_job(SampleJob(prompts=prompts, max_tokens=5, seed=3, samples_per_prompt=12))
    few = run_job(SampleJob(prompts=prompts, max_tokens=5, seed=3, samples_per_prompt=2))
    for index, sample in few.items():
        assert_same(sample, many[index])
    assert len({tuple(many[0, sample].token_ids.tolist()) for sample in range(12)}) > 6


def test_greedy_is_the_argmax_of_an_uncached_forward_pass(
    run_job: RunJob, prompts: list[Int32Array], dense_logits: DenseLogits
) -> None:
    job = SampleJob(prompts=prompts, max_tokens=12, temperature=0.0, ignore_end_tokens=True)
    for (prompt_index, _), sample in run_job(job).items():
        prompt = prompts[prompt_index]
        # One more token: row i of the logits is over token i + 1.
        whole = np.concatenate([prompt, sample.token_ids])
        logits = dense_logits(whole)[len(prompt) - 1 :]
        np.testing.assert_array_equal(logits.argmax(-1), sample.token_ids)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, 1.0), (0.6, 30, 0.8), (0.0, None, 1.0)]
)
def test_log_probs_are_those_of_scoring_the_whole(
    run_job: RunJob,
    model: LoadedModel,
    weights: ModelWeights,
    prompts: list[Int32Array],
    temperature: float,
    top_k: int | None,
    top_p: float,
) -> None:
    scorer = Scorer(model)
    job = SampleJob(
        prompts=prompts, max_tokens=30, temperature=temperature, top_k=top_k, top_p=top_p
    )
    for (prompt_index, _), sample in run_job(job).items():
        prompt = prompts[prompt_index]
        score_job = ScoreJob(
            prompt_index=0,
            token_ids=np.concatenate([prompt, sample.token_ids]),
            score_from=len(prompt),
            top_k=1,
            # "At temperature 0: of the unscaled logits."
            temperature=temperature or 1.0,
        )
        chunks = list(scorer.score([score_job], weights))
        scored = np.concatenate([chunk.prompt_log_probs for chunk in chunks])
        np.testing.assert_allclose(sample.log_probs, scored, atol=1e-4)


def test_top_k_of_one_is_greedy(run_job: RunJob, prompts: list[Int32Array]) -> None:
    greedy = run_job(SampleJob(prompts=prompts, max_tokens=20, temperature=0.0))
    one = run_job(SampleJob(prompts=prompts, max_tokens=20, top_k=1, seed=5))
    for index, sample in greedy.items():
        assert_same(sample, one[index])


def test_samples_share_the_first_tokens_frequencies_of_the_model(
    run_job: RunJob, prompts: list[Int32Array], dense_logits: DenseLogits
) -> None:
    prompt = prompts[0]
    logits = dense_logits(np.append(prompt, np.int32(0)))[-1] / 0.25
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    count = 600
    samples = run_job(
        SampleJob(prompts=[prompt], max_tokens=1, temperature=0.25, samples_per_prompt=count)
    )
    drawn = np.array([sample.token_ids[0] for sample in samples.values()])
    top = int(probabilities.argmax())
    expected = probabilities[top]
    # Five standard deviations of a binomial share; the seed is fixed.
    assert abs((drawn == top).mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (None, 0.5), (5, 0.3)])
def test_restrictions_keep_only_the_most_probable_tokens(
    run_job: RunJob,
    prompts: list[Int32Array],
    dense_logits: DenseLogits,
    top_k: int | None,
    top_p: float,
) -> None:
    prompt = prompts[0]
    temperature = 0.5
    logits = dense_logits(np.append(prompt, np.int32(0)))[-1] / temperature
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    # "Keep the smallest set of tokens whose probability reaches top_p."
    nucleus = 1 + int((np.cumsum(probabilities[order]) < top_p).sum())
    allowed = order[: min(top_k or len(order), nucleus)]
    samples = run_job(
        SampleJob(
            prompts=[prompt],
            max_tokens=1,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            samples_per_prompt=300,
        )
    )
    drawn = {int(sample.token_ids[0]) for sample in samples.values()}
    assert drawn <= set(allowed.tolist())
    assert len(drawn) > min(3, len(allowed) - 1)


def test_a_stop_token_ends_a_sample_and_is_part_of_it(
    run_job: RunJob, prompts: list[Int32Array]
) -> None:
    job = SampleJob(prompts=prompts, max_tokens=40, seed=4, ignore_end_tokens=True)
    for index, whole in run_job(job).items():
        stop = int(whole.token_ids[11])
        sample = run_job(replace(job, stop_token_ids=(stop, 1)))[index]
        end = whole.token_ids.tolist().index(stop) + 1
        np.testing.assert_array_equal(sample.token_ids, whole.token_ids[: len(sample.token_ids)])
        assert len(sample.token_ids) <= end
        assert sample.token_ids[-1] in (stop, 1)
        assert sample.stop_reason is StopReason.STOP
        assert whole.stop_reason is StopReason.LENGTH


def test_the_tokenizers_end_tokens_end_a_sample_unless_ignored(
    model: LoadedModel, run_job: RunJob, prompts: list[Int32Array]
) -> None:
    assert model.tokenizer.end_token_ids
    # Hot enough that every token is nearly as likely as any other, so that an end token comes.
    job = SampleJob(prompts=prompts, max_tokens=600, temperature=50.0, samples_per_prompt=4)
    ended = run_job(job)
    stopped = [sample for sample in ended.values() if sample.stop_reason is StopReason.STOP]
    assert len(stopped) >= 2
    for sample in stopped:
        assert sample.token_ids[-1] in model.tokenizer.end_token_ids
        assert not np.isin(sample.token_ids[:-1], model.tokenizer.end_token_ids).any()
    ignored = run_job(replace(job, ignore_end_tokens=True))
    assert all(len(sample.token_ids) == 600 for sample in ignored.values())


def test_a_stop_string_ends_a_sample_with_the_token_that_completes_it(
    model: LoadedModel, run_job: RunJob, prompts: list[Int32Array]
) -> None:
    job = SampleJob(prompts=prompts[:1], max_tokens=40, seed=6, ignore_end_tokens=True)
    whole = run_job(job)[0, 0].token_ids.tolist()
    decode = model.tokenizer.decode
    # A text of two tokens, beyond the first block, that no earlier token completes.
    for end in range(13, 35):
        stop = decode(whole[end - 2 : end], skip_special_tokens=False)
        text = decode(whole[:end], skip_special_tokens=False)
        before = decode(whole[: end - 1], skip_special_tokens=False)
        if "\ufffd" not in stop and stop in text and stop not in before:
            break
    else:
        pytest.fail("the sample has no stretch that suits this test")
    sample = run_job(replace(job, stop_strings=(stop, "never produced")))[0, 0]
    assert sample.token_ids.tolist() == whole[:end]
    assert len(sample.log_probs) == end
    assert sample.stop_reason is StopReason.STOP
    assert sample.text == decode(whole[:end])


def test_a_sample_ends_at_the_models_context(
    model: LoadedModel, run_job: RunJob, prompts: list[Int32Array]
) -> None:
    context = model.config.max_position_count
    full = np.resize(prompts[0], context)
    samples = run_job(SampleJob(prompts=[full, full[:-3]], max_tokens=50, ignore_end_tokens=True))
    assert [len(samples[index, 0].token_ids) for index in (0, 1)] == [0, 3]
    assert all(sample.stop_reason is StopReason.LENGTH for sample in samples.values())
