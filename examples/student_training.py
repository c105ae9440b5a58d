"""Teaches a running student what a running teacher says when it is told to rhyme.

Start both first:

    distill-teacher
    distill-student --teacher main=127.0.0.1:50051

Then: `python examples/student_training.py`.
"""

import argparse
import time
from pathlib import Path

from client.errors import ClientError
from client.recipes.batches import AlignedSequence, align
from client.results import check_pair
from client.settings import AdamW, LoraConfig, SamplingParams, batch_settings, pulled_targets
from client.student import StudentClient
from client.teacher import TeacherClient

QUESTION = {"role": "user", "content": "Tell me about the sea."}
INSTRUCTION = {"role": "system", "content": "You always answer in short rhyming verses."}


def main() -> None:
    """Distil a few steps, save a checkpoint, export the adapter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher-address", default="127.0.0.1:50051", help="default: %(default)s")
    parser.add_argument("--student-address", default="127.0.0.1:50052", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/student_training"))
    arguments = parser.parse_args()

    with (
        TeacherClient(arguments.teacher_address) as teacher,
        StudentClient(arguments.student_address) as student,
    ):
        check_pair(teacher.model_info(), student.model_info())
        tokenizer = student.tokenizer()

        # The teacher sees the instruction, the student does not.
        teacher_prompt = tokenizer.encode_chat([INSTRUCTION, QUESTION])
        student_prompt = tokenizer.encode_chat([QUESTION])
        answers = teacher.sample(
            [teacher_prompt], SamplingParams(max_tokens=32, samples_per_prompt=4, seed=1)
        )
        # Lines up the rows of both sides, whose prompts differ in length.
        batch = align(
            [
                AlignedSequence(
                    student_prompt=student_prompt,
                    teacher_prompt=teacher_prompt,
                    completion=answer.token_ids,
                )
                for answer in answers
            ]
        )

        run = student.create_run(time.strftime("example-%H%M%S"), lora=LoraConfig(rank=8))
        for _ in range(arguments.steps):
            # The student asks the teacher itself: no distribution passes through here.
            pull = pulled_targets("main", batch.prompts, top_k=20)
            # Both are sent at once. They apply in this order, and no step is taken if the batch is
            # refused; forward_backward and optim_step would wait for each answer.
            training = run.submit_forward_backward(
                batch.examples, batch_settings("tail_bucket"), pull=pull
            )
            stepping = run.submit_optim_step(AdamW(learning_rate=5e-4))
            result, step = training.result(), stepping.result()
            print(
                f"step {step.step}: KL {result.metrics['tail_bucket_kl']:.3f} nats over "
                f"{result.totals.row_count} tokens, gradient norm {step.gradient_norm:.2f}"
            )

        (completion,) = student.under(run.run_id).sample(
            [student_prompt], SamplingParams(max_tokens=32, temperature=0)
        )
        print(completion.text)

        print(f"saved checkpoint {run.save_checkpoint('final').name}")
        for file in run.export_weights(arguments.out / "adapter"):
            print(f"wrote {file}")


if __name__ == "__main__":
    try:
        main()
    except (ClientError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
