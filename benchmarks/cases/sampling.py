"""Sampling: a batch of prompts together, and one at a time."""

from benchmarks.agreement import DisagreementError
from benchmarks.bench import Bench, Comparison, compare
from benchmarks.engine import OwnSampler
from benchmarks.peers.protocol import SAMPLE, Task
from benchmarks.results import CaseResult
from benchmarks.work import SCORING_PASSES, Work
from benchmarks.workloads import random_tokens


def batch8(bench: Bench) -> list[CaseResult]:
    """Tokens per second together, against one at a time."""
    sizes, model = bench.sizes, bench.model.loaded
    lengths = [sizes.sampling_prompt_tokens] * sizes.sampling_prompts
    prompts = random_tokens(lengths, model.config.vocab_size, seed=5)
    token_count = sizes.sampling_prompts * sizes.new_tokens
    own = OwnSampler(model)

    def one_at_a_time() -> int:
        return sum(own.sample((prompt,), sizes.new_tokens) for prompt in prompts)

    def check(generated: int) -> None:
        if generated != token_count or one_at_a_time() != token_count:
            raise DisagreementError(f"{generated} tokens instead of {token_count}")

    comparison = Comparison(
        name="sampling_batch8",
        ours=lambda: own.sample(prompts, sizes.new_tokens),
        naive=one_at_a_time,
        check=check,
        digest=lambda _: float(sizes.new_tokens),
        task=Task(kind=SAMPLE, sequences=list(prompts), options={"new_tokens": sizes.new_tokens}),
        peers=("torch_f32", "torch_bf16"),
        work=Work(
            body_tokens=sum(lengths) + token_count, head_rows=token_count, passes=SCORING_PASSES
        ),
        token_count=token_count,
        note=(
            f"{len(lengths)} prompts of {lengths[0]} tokens, {sizes.new_tokens} new ones each; "
            "naive: our sampler, one prompt at a time; torch: generate() on all of them"
        ),
    )
    return [compare(bench, comparison)]
