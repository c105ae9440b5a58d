"""What ends a sample, token by token."""

import numpy as np
import pytest

from distill.engine.samples import GrowingSample, SampleEnds, SampleJob, growing_samples
from distill.models.loading import LoadedModel
from distill.samples import StopReason


def grown(
    model: LoadedModel, token_ids: list[int], stop_strings: tuple[str, ...], block: int
) -> GrowingSample:
    """A sample that gets the tokens by blocks until it ends."""
    job = SampleJob(prompts=[np.ones(3, np.int32)], max_tokens=100, stop_strings=stop_strings)
    ends = SampleEnds.of_job(job, model.tokenizer)
    (sample,) = growing_samples(job, max_position_count=1000)
    for start in range(0, len(token_ids), block):
        if sample.stop_reason is not None:
            break
        part = np.asarray(token_ids[start : start + block], np.int32)
        sample.extend(part, np.zeros(len(part), np.float32), ends)
    return sample


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("stop", ["Paris", "ris.", "Zwölf", "\ufffd"])
def test_a_stop_string_ends_a_sample_at_the_first_prefix_that_has_it(
    model: LoadedModel, stop: str, block: int
) -> None:
    tokenizer = model.tokenizer
    token_ids = tokenizer.encode("Answer: Paris. Zwölf großen 😀 The end of it all.")
    texts = [
        tokenizer.decode(token_ids[:end], skip_special_tokens=False)
        for end in range(1, len(token_ids) + 1)
    ]
    first = next(index for index, text in enumerate(texts) if stop in text) + 1
    sample = grown(model, token_ids, ("never", stop), block)
    assert sample.token_ids == token_ids[:first]
    assert len(sample.log_probs) == first
    assert sample.stop_reason is StopReason.STOP


def test_without_a_stop_string_a_sample_grows_to_its_budget(model: LoadedModel) -> None:
    token_ids = model.tokenizer.encode("The student learns. " * 60)
    sample = grown(model, token_ids[:96], ("never",), 8)
    assert sample.stop_reason is None
    sample = grown(model, token_ids[:100], ("never",), 4)
    assert sample.stop_reason is StopReason.LENGTH


def test_a_prompt_that_fills_the_context_has_ended_before_it_began() -> None:
    prompts = [np.ones(10, np.int32), np.ones(7, np.int32)]
    job = SampleJob(prompts=prompts, max_tokens=5, samples_per_prompt=2)
    samples = growing_samples(job, max_position_count=10)
    assert [sample.budget for sample in samples] == [0, 0, 3, 3]
    assert [sample.stop_reason for sample in samples] == [StopReason.LENGTH] * 2 + [None] * 2
    indices = [(sample.prompt_index, sample.sample_index) for sample in samples]
    assert indices == [(0, 0), (0, 1), (1, 0), (1, 1)]
