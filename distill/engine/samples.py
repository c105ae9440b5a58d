"""What is sampled, and a sample while it grows: its tokens, and how it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from distill.arrays import FloatArray, Int32Array
from distill.samples import Sample, StopReason
from distill.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """A sampling request, already validated."""

    prompts: Sequence[Int32Array]
    """Each [T], T >= 1."""

    max_tokens: int
    """Most tokens to generate per sample."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""

    top_k: int | None = None
    """Keep only so many of the most probable tokens."""

    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this."""

    seed: int = 0
    """Of the random numbers, a signed 64-bit integer."""

    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a sample. Empty: the tokenizer's end tokens, unless `ignore_end_tokens`."""

    stop_strings: tuple[str, ...] = ()
    """Texts that end a sample; none is empty."""

    ignore_end_tokens: bool = False
    """Generate through the tokenizer's end tokens."""

    samples_per_prompt: int = 1
    """Samples of each prompt."""

    @property
    def sample_count(self) -> int:
        """Samples of all prompts."""
        return len(self.prompts) * self.samples_per_prompt


@dataclass(frozen=True, kw_only=True)
class SampleEnds:
    """What ends the samples of a job besides their length."""

    stop_token_ids: tuple[int, ...]
    """Ids, the tokenizer's end tokens among them where they apply."""

    stop_strings: tuple[str, ...]
    """Texts."""

    tokenizer: TextTokenizer
    """Gives the text in which they are searched."""

    @classmethod
    def of_job(cls, job: SampleJob, tokenizer: TextTokenizer) -> "SampleEnds":
        """The ends that a job asks for."""
        own = job.stop_token_ids or job.ignore_end_tokens
        return cls(
            stop_token_ids=job.stop_token_ids if own else tokenizer.end_token_ids,
            stop_strings=job.stop_strings,
            tokenizer=tokenizer,
        )

    def stop_string_end(self, token_ids: list[int], known: int) -> int | None:
        """How many tokens there are up to the first that completes a stop string; None: none does.

        Args:
            token_ids: all tokens of the sample so far.
            known: how many of them were searched before, without success.
        """
        if not self.stop_strings:
            return None

        def has_stop(count: int) -> bool:
            # With special tokens, for their texts are common stop strings.
            text = self.tokenizer.decode(token_ids[:count], skip_special_tokens=False)
            return any(stop in text for stop in self.stop_strings)

        # The bytes of an unfinished character show as U+FFFD until its last byte comes. So a stop
        # string with U+FFFD may be in the text of a prefix and not in that of the whole. Any other
        # stop string stays in the text, and it is enough to look at the whole.
        if not any("\ufffd" in stop for stop in self.stop_strings) and not has_stop(len(token_ids)):
            return None
        return next((end for end in range(known + 1, len(token_ids) + 1) if has_stop(end)), None)


@dataclass(kw_only=True, eq=False)
class GrowingSample:
    """A sample until it is finished."""

    prompt_index: int
    """As in `Sample`."""

    sample_index: int
    """As in `Sample`."""

    prompt: Int32Array
    """[T]."""

    budget: int
    """Most tokens that it may get."""

    token_ids: list[int] = field(default_factory=list)
    """Generated so far."""

    log_probs: list[float] = field(default_factory=list)
    """Of those."""

    stop_reason: StopReason | None = None
    """Why it ended; None while it grows."""

    def extend(self, token_ids: Int32Array, log_probs: FloatArray, ends: SampleEnds) -> None:
        """Append at least one token [any], of which only the last may be a stop token."""
        known = len(self.token_ids)
        self.token_ids += token_ids.tolist()
        self.log_probs += log_probs.tolist()
        end = ends.stop_string_end(self.token_ids, known)
        if end is not None:
            del self.token_ids[end:], self.log_probs[end:]
            self.stop_reason = StopReason.STOP
        elif self.token_ids[-1] in ends.stop_token_ids:
            self.stop_reason = StopReason.STOP
        elif len(self.token_ids) >= self.budget:
            self.stop_reason = StopReason.LENGTH

    def finished(self, tokenizer: TextTokenizer) -> Sample:
        """The sample, once it has a stop reason."""
        assert self.stop_reason is not None
        return Sample(
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
            token_ids=np.asarray(self.token_ids, np.int32),
            log_probs=np.asarray(self.log_probs, np.float32),
            stop_reason=self.stop_reason,
            text=tokenizer.decode(self.token_ids),
        )


def growing_samples(job: SampleJob, *, max_position_count: int) -> list[GrowingSample]:
    """All samples of a job before their first token, those of a prompt side by side.

    One whose prompt fills the model's context has no room for a token and has ended.
    """
    samples = []
    for prompt_index, prompt in enumerate(job.prompts):
        budget = min(job.max_tokens, max_position_count - len(prompt))
        samples += [
            GrowingSample(
                prompt_index=prompt_index,
                sample_index=sample_index,
                prompt=prompt,
                budget=budget,
                stop_reason=None if budget > 0 else StopReason.LENGTH,
            )
            for sample_index in range(job.samples_per_prompt)
        ]
    return samples
