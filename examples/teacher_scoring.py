"""Asks a running teacher how it reads a text.

Start one first: `distill-teacher`. Then: `python examples/teacher_scoring.py`.
"""

import argparse

import numpy as np

from client.errors import ClientError
from client.settings import SamplingParams
from client.teacher import TeacherClient


def main() -> None:
    """Score a text and let the teacher go on with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:50051", help="default: %(default)s")
    parser.add_argument("--text", default="The capital of France is Paris", help="what to score")
    arguments = parser.parse_args()

    with TeacherClient(arguments.address, timeout_seconds=120) as teacher:
        # The tokenizer comes from the service: no model files are needed here.
        tokenizer = teacher.tokenizer()
        prompt = tokenizer.encode(arguments.text)

        # Row i is the distribution over token i given the tokens before it.
        (scores,) = teacher.score([prompt], top_k=20)
        for row, token_id in enumerate(prompt[1:]):
            best = tokenizer.token_text(int(scores.token_ids[row, 0]))
            print(
                f"{tokenizer.token_text(token_id)!r:14} probability "
                f"{np.exp(scores.prompt_log_probs[row]):6.1%}, expected {best!r} "
                f"(entropy {scores.entropies[row]:.2f} nats)"
            )
        perplexity = np.exp(-scores.prompt_log_probs.mean())
        print(f"perplexity {perplexity:.1f}")

        # The same rows as they finish; leaving the loop stops the work on the service.
        for chunk in teacher.stream_top_k([prompt], top_k=20):
            print(f"rows from {chunk.first_row}: log-probs of shape {chunk.log_probs.shape}")

        greedy = SamplingParams(max_tokens=16, temperature=0)
        (completion,) = teacher.sample([prompt], greedy)
        print(f"{arguments.text}{completion.text}")


if __name__ == "__main__":
    try:
        main()
    except (ClientError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
