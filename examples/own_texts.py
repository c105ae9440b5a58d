"""Teaches a running student the texts of a file, by the distributions of a running teacher.

Start both first, each with its own model:

    distill-teacher --model TEACHER
    distill-student --model STUDENT --teacher main=127.0.0.1:50051

Then: `python examples/own_texts.py texts.txt --out out/mine`. Texts are separated by empty lines.
"""

import argparse
from pathlib import Path

from client.errors import ClientError
from client.recipes.batches import Targets, TeacherLink
from client.recipes.metrics import StepMetrics
from client.recipes.off_policy import OffPolicySettings, tokenize_corpus, train_off_policy
from client.results import check_pair
from client.settings import LoraConfig
from client.student import StudentClient
from client.teacher import TeacherClient


def main() -> None:
    """Train a LoRA on the texts, save a checkpoint, export the adapter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", type=Path, help="a text file, its texts apart by empty lines")
    parser.add_argument("--teacher-address", default="127.0.0.1:50051", help="default: %(default)s")
    parser.add_argument("--student-address", default="127.0.0.1:50052", help="default: %(default)s")
    parser.add_argument("--run", default="mine", help="name of the run; default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=512, help="default: %(default)s")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/mine"),
        help="where the adapter goes, in the place of an earlier one; default: %(default)s",
    )
    arguments = parser.parse_args()

    with (
        TeacherClient(arguments.teacher_address) as teacher,
        StudentClient(arguments.student_address) as student,
    ):
        texts = [text for text in arguments.texts.read_text().split("\n\n") if text.strip()]
        check_pair(teacher.model_info(), student.model_info())
        # Also where it is there already: then this script goes on with it, and no other one does.
        run = student.create_run(arguments.run, lora=LoraConfig(rank=16), take_over=True)
        # Runs live in the student's memory. After a restart a new one goes on where it was saved.
        saved = run.list_checkpoints()
        if run.created.step == 0 and saved:
            run.load_checkpoint(saved[-1].name)
        train_off_policy(
            run=run,
            teacher=TeacherLink(client=teacher, name="main", targets=Targets.PULL),
            corpus=tokenize_corpus(student.tokenizer(), texts, max_tokens=arguments.max_tokens),
            settings=OffPolicySettings(step_count=arguments.steps),
            on_step=_report,
        )
        checkpoint = run.save_checkpoint("done", overwrite=True)
        run.export_weights(arguments.out)
    print(f"checkpoint {checkpoint.name!r}; Transformers and PEFT load {arguments.out}")


def _report(metrics: StepMetrics) -> None:
    print(f"step {metrics.step}: objective {metrics.objective:.3f} nats per token")


if __name__ == "__main__":
    try:
        main()
    except (ClientError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
